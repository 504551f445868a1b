# Everything a newcomer needs: `make demo` shows the main job, `make test` checks it all.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: setup demo test fast chaos lint bench docs clean lock

setup: .venv/.ready

.venv/.ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

demo: setup
	$(BIN)/instainfer demo

test: setup lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

fast: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

chaos: setup
	CHAOS_SECONDS=600 $(BIN)/python -m pytest -s tests/chaos

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/instainfer bench overhead
	$(BIN)/instainfer bench starts

docs: setup
	$(BIN)/python -m instainfer.core.lifecycle > docs/lifecycles.md
	$(BIN)/python -m instainfer.reference docs
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -d build/docs docs site
	@echo site/index.html

lock: setup
	$(BIN)/uv pip compile pyproject.toml --group dev --group docs --extra lab --extra objects --extra otel --extra postgres --extra ray \
		--python-version 3.11 --universal --generate-hashes --no-emit-index-url --no-emit-find-links --quiet --upgrade -o requirements.lock

clean:
	rm -rf .venv build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
