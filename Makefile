# make quickstart   installs into .venv and runs the main job on the embedded dataset
# make test         installs into .venv, checks style and types, runs the tests
# make docs         installs into .venv, builds the pages in docs/ into a site: site/index.html

PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test docs
quickstart: .venv/installed
	@echo 'The commands below are run by $(BIN)/oper; `. $(BIN)/activate` makes `oper` known to your shell.'
	@$(BIN)/oper run configs/quickstart.yaml

test: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses=2 --durations=10

docs: .venv/installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo 'open site/index.html'

.venv/installed: pyproject.toml constraints.txt
	@echo 'installing into .venv; this takes some minutes'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,docs,atari,rl-unplugged,tianshou]'
	@touch $@
