# On a fresh machine every target below first makes .venv and installs the project into it.
#   make demo    train, export and bench a 2-bit student on scikit-learn's digits; ends with a table
#   make test    the default test suite (offline, CPU, minutes)
#   make slow    the tests that take longer; CI runs them too
#   make check   format, lint, types, import contracts
#   make golden  rewrite the golden losses, the wording of errors and the README's method table; read the diff
#   make benchmarks  the measurements behind the claims of speed

PYTHON ?= python3
BIN := .venv/bin
RUN := runs/demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: demo test slow check golden benchmarks clean

.venv/installed: pyproject.toml setup.cfg
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: .venv/installed
	$(BIN)/qkd train recipes/digits_cmtkd_w2a2.yaml --out $(RUN)
	$(BIN)/qkd export $(RUN)
	$(BIN)/qkd bench $(RUN)

test: .venv/installed
	$(BIN)/python -m pytest -n 2 -m 'not slow and not gpu'

slow: .venv/installed
	$(BIN)/python -m pytest -n 2 -m 'slow and not gpu'

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

golden: .venv/installed
	$(BIN)/python -m pytest -m 'not gpu' --rewrite-golden

benchmarks: .venv/installed
	for name in fake_quant train_step method_cost loop export_routes networks; do $(BIN)/python benchmarks/$$name.py || exit 1; done

clean:
	rm -rf .venv build *.egg-info
