# make serve    a server on 127.0.0.1:8000 with the built-in model (ARGS="--port 9000 path/to/model" for more)
# make test     what CI runs: format, lint, types, tests
# make test-clients    the same server for clients that need an environment of their own: .venv-clients
# All set up .venv first; nothing is installed outside of this folder. With npm, tests have JavaScript's clients as
# well; `make test NPM=` leaves them out.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MINIMUM := 3.11
NPM := $(shell command -v npm)
JS := tests/clients_js
CLIENTS := tests/clients/apart
# On all cores, where pip takes one. Some packages hold templates that are no Python: that is no failure.
COMPILE = @$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib >/dev/null 2>&1 || true

.PHONY: serve test test-clients fix clean

serve: $(VENV)/served
	@$(BIN)/tokenspeed serve $(ARGS)

test: $(VENV)/tested $(if $(NPM),$(JS)/node_modules/installed)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-clients: $(VENV)/served $(VENV)-clients/tested
	SERVER_PYTHON=$(BIN)/python $(VENV)-clients/bin/python -m pytest -o filterwarnings=ignore $(CLIENTS)

fix: $(VENV)/tested
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(VENV)-clients .mypy_cache .ruff_cache .pytest_cache .hypothesis $(JS)/node_modules

$(BIN)/python:
	@$(PYTHON) -c 'import sys; need = tuple(map(int, "$(MINIMUM)".split("."))); sys.exit(sys.version_info < need)' \
		|| { echo "TokenSpeed needs Python $(MINIMUM) or newer; name one with: make PYTHON=python3.12 ..."; exit 1; }
	@echo "Setting up $(VENV) (once; a few minutes, most of it PyTorch)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "Python's venv module is incomplete; on Debian and Ubuntu install python3-venv"; exit 1; }

$(VENV)/served: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --no-compile --disable-pip-version-check -e .
	$(COMPILE)
	@touch $@

$(VENV)/tested: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --no-compile --disable-pip-version-check -e '.[dev]'
	$(COMPILE)
	@touch $@ $(VENV)/served

$(JS)/node_modules/installed: $(JS)/package-lock.json
	$(NPM) ci --prefix $(JS) --ignore-scripts --no-audit --no-fund
	@touch $@

$(VENV)-clients/tested: $(CLIENTS)/requirements.txt | $(BIN)/python
	$(PYTHON) -m venv $(VENV)-clients
	$(VENV)-clients/bin/python -m pip install --disable-pip-version-check -r $<
	@touch $@
