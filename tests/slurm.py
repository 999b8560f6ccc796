"A SLURM of one node, for as long as a test needs it: munged, slurmctld and slurmd with a configuration of their own; no service of the machine is touched."
import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

NEEDS = ('munged', 'slurmctld', 'slurmd', 'sbatch', 'sinfo')


def why_not(): # '' if it can be had
    path = os.environ.get('PATH', '') + ':/usr/sbin:/sbin'
    if gone := [n for n in NEEDS if not shutil.which(n, path=path)]: return f"SLURM is not installed (no {', '.join(gone)})"
    return '' if os.geteuid() == 0 else 'slurmd needs root'


def free_port():
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return s.getsockname()[1]


CONF = '''ClusterName=toy
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={a}
SlurmdPort={b}
AuthType=auth/munge
AuthInfo=socket={at}/munge.socket
CredType=cred/munge
StateSaveLocation={at}/state
SlurmdSpoolDir={at}/spool
SlurmctldPidFile={at}/slurmctld.pid
SlurmdPidFile={at}/slurmd.pid
SlurmctldLogFile={at}/slurmctld.log
SlurmdLogFile={at}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
'''


@contextmanager
def one_node(at): # environment for sbatch and its like
    at, path = Path(at), os.environ['PATH'] + ':/usr/sbin:/sbin'
    for d in ('state', 'spool'): (at/d).mkdir(parents=True)
    at.chmod(0o755) # munge wants it readable
    key = at/'munge.key'; key.write_bytes(os.urandom(1024)); key.chmod(0o400)
    (at/'slurm.conf').write_text(CONF.format(host=socket.gethostname().split('.')[0], at=at, a=free_port(), b=free_port()))
    env = os.environ | dict(SLURM_CONF=str(at/'slurm.conf'), PATH=path)
    munge = ['munged', '--foreground', '--force', f'--socket={at}/munge.socket', f'--key-file={key}', f'--pid-file={at}/munge.pid', f'--log-file={at}/munge.log', f'--seed-file={at}/munge.seed']
    procs, log = [], open(at/'daemons.log', 'w')
    try:
        for words in (munge, ['slurmctld', '-D', '-f', str(at/'slurm.conf')], ['slurmd', '-D', '-f', str(at/'slurm.conf')]):
            procs.append(subprocess.Popen(words, env=env, stdout=log, stderr=log, start_new_session=True)); time.sleep(1)
        for _ in range(240):
            said = subprocess.run(['sinfo', '-h', '-o', '%t'], env=env, capture_output=True, text=True).stdout.strip()
            if said == 'idle': break
            assert all(p.poll() is None for p in procs), (at/'daemons.log').read_text()[-2000:]
            time.sleep(.5)
        else: raise AssertionError(f"the node is '{said}': {(at/'slurmctld.log').read_text()[-1000:]} {(at/'slurmd.log').read_text()[-1000:]}")
        yield env
    finally:
        subprocess.run(['scancel', '--full', '--user', 'root'], env=env, capture_output=True)
        time.sleep(1)
        for p in reversed(procs):
            p.terminate()
            try: p.wait(15)
            except subprocess.TimeoutExpired: p.kill(); p.wait()
        log.close()
