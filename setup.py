"""Packaging: `settings.ini` says what, this file says how. `nbs/runs` (the lab sheets) travels inside the package."""
import configparser
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
parser = configparser.ConfigParser(delimiters=['='])
parser.read(here/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']


def lines(key): return [line.strip() for line in cfg.get(key, '').splitlines() if line.strip()]


class BuildWithSheets(build_py):
    "Copies the lab sheets to `skinrepro/runs`, beside the code that executes them."
    def run(self):
        super().run()
        if self.editable_mode: return # an editable install finds them in nbs/runs
        target = Path(self.build_lib)/'skinrepro'/'runs'
        target.mkdir(parents=True, exist_ok=True)
        for sheet in sorted((here/'nbs'/'runs').glob('*.ipynb')): shutil.copy2(sheet, target/sheet.name)


setup(
    name=cfg['name'], version=cfg['version'], description=cfg['description'], author=cfg['author'],
    license=cfg['license'], keywords=cfg['keywords'].split(),
    long_description=(here/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    python_requires='>=' + cfg['min_python'],
    packages=find_packages(include=['skinrepro', 'skinrepro.*']),
    package_data={'skinrepro': ['**/*.csv', '**/*.json', '**/*.txt', 'runs/*.ipynb']},
    install_requires=lines('requirements'),
    extras_require={name: lines(f'{name}_requirements') for name in ('cluster', 'engine', 'dev', 'test', 'lint')},
    entry_points={'console_scripts': lines('console_scripts'), 'nbdev': ['skinrepro=skinrepro._modidx:d']},
    cmdclass={'build_py': BuildWithSheets},
    zip_safe=False)
