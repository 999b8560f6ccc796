"Time and last lines of the two commands of the front page, from a checkout without `.venv`: python3 bench/front.py [run] [test]; writes results/bench/front.json."
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILE, LINES = ROOT/'results'/'bench'/'front.json', dict(run=6, test=2)


def timed(*words):
    "(seconds, lines of stdout), which are shown as they come; a failure ends this."
    began, lines = time.monotonic(), []
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as proc:
        for l in proc.stdout: print(l, end='', flush=True); lines.append(l.rstrip())
    if proc.returncode: sys.exit(f"{' '.join(words)} failed with status {proc.returncode}: nothing was written")
    return round(time.monotonic() - began, 1), [l for l in lines if l]


def main(what):
    for w in what:
        if w not in LINES: sys.exit(f"'{w}' is not measured: write run, test or both")
    setup = None if (ROOT/'.venv'/'.ready').is_file() else timed('make', 'setup')[0]
    found = json.loads(FILE.read_text()) if FILE.is_file() else {}
    for w in what:
        seconds, lines = timed('make', w)
        old = found.get(f'make {w}', {})
        found[f'make {w}'] = dict(seconds=seconds, setup_seconds=setup or old.get('setup_seconds'), machine=f'{os.cpu_count()} cores, {platform.machine()}', load=round(os.getloadavg()[0], 1),
                                  when=datetime.date.today().isoformat(), last=lines[-LINES[w]:])
    part = FILE.with_suffix('.part') # at the end: the tests compare README with the file
    part.write_text(json.dumps(found, indent=1, ensure_ascii=False) + '\n'); os.replace(part, FILE)


if __name__ == '__main__': main(sys.argv[1:] or ['run', 'test'])
