# skinrepro: `make run` and `make test` do all set-up themselves; `make help` lists the rest.
PAPER   ?= gan_ssl
PRESET  ?= smoke
DATASET ?=
SEEDS   ?= 0
DATA    ?=

BIN   := .venv/bin
READY := .venv/.ready
# the first Python 3.11+ that can make a virtual environment; override with PYTHON=...
PYTHON ?= $(firstword $(foreach p,python3.12 python3.11 python3,$(shell $(p) -c "import sys, venv, ensurepip; sys.version_info >= (3, 11) and print('$(p)')" 2>/dev/null)))

.DEFAULT_GOAL := help
QUARTO = command -v quarto >/dev/null || { echo "the website needs Quarto: install it from https://quarto.org/docs/get-started/ and run 'make $@' again"; exit 2; }
.PHONY: help setup run test export clean docs docs-preview lab bench readme hooks

help: ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## (.*)/  make \1|\2/' | column -t -s '|'
	@echo "  variables: PAPER=$(PAPER) PRESET=$(PRESET) DATASET= SEEDS=$(SEEDS) DATA=folder-of-official-files"

$(READY): constraints.txt settings.ini setup.py pyproject.toml
	@test -n "$(PYTHON)" || { echo "skinrepro needs Python 3.11 or newer with venv: install it, or name one with PYTHON=..."; exit 2; }
	@echo "Setting up .venv with $(PYTHON), once: a few minutes and 7 GB"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt pip setuptools wheel
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-build-isolation -c constraints.txt -e '.[cluster,engine,dev,test]'
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -c constraints.txt lightly cffconvert
	@touch $@

setup: $(READY) ## make .venv from constraints.txt, once

run: $(READY) ## run a paper's arms (default: smoke, embedded data) and print the result table
	@$(BIN)/skinrepro run --paper $(PAPER) --preset $(PRESET) --seeds $(SEEDS) $(if $(DATASET),--dataset $(DATASET)) $(if $(DATA),--data '$(DATA)') $(if $(filter smoke,$(PRESET)),--protocol paper)

test: $(READY) ## run all tests (SLOW=1: the slow ones as well)
	@OMP_NUM_THREADS=1 SKINREPRO_SLOW=$(SLOW) $(BIN)/python -m pytest -n 2 --dist loadgroup

export: $(READY) ## notebooks -> package, and clean the notebooks' metadata
	@$(BIN)/nbdev-export && $(BIN)/nbdev-clean

clean: ## remove caches and built files; records, artefacts and .venv stay
	@rm -rf build dist *.egg-info _docs _proc nbs/_quarto.yml .pytest_cache
	@find . -name __pycache__ -not -path './.venv/*' -type d -exec rm -rf {} +

docs: $(READY) ## build the website (needs Quarto)
	@$(QUARTO)
	@cp _quarto.yml nbs/_quarto.yml && $(BIN)/nbdev-docs && $(BIN)/python -c "from skinrepro.companion.site import take_records; print(take_records('_docs'), 'records taken along')"

docs-preview: $(READY) ## show the website here, and again whenever a notebook changes (needs Quarto)
	@$(QUARTO)
	@cp _quarto.yml nbs/_quarto.yml && $(BIN)/nbdev-preview

lab: $(READY) ## open JupyterLab on the papers
	@$(BIN)/jupyter lab nbs/papers

bench: $(READY) ## measure SimCLR and the Barlow Twins loss beside their peers, StyleGAN beside itself run plainly, and the grid
	@$(BIN)/python bench/simclr.py
	@$(BIN)/python bench/gan.py
	@$(BIN)/python bench/barlow.py
	@$(BIN)/python bench/grid.py

readme: $(READY) ## README.md and its picture from nbs/index.ipynb
	@$(BIN)/python -c "from skinrepro.companion.site import write_readme; write_readme()"

hooks: $(READY) ## merge and diff notebooks by cell in this checkout (nbdev's drivers, see .gitconfig)
	@git config --local include.path ../.gitconfig
