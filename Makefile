# `make run` and `make test` first make the project's own environment in .venv,
# with uv where it is installed, else with venv and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test fast docs dev paper clean

run: $(VENV)/.installed
	$(BIN)/jaxpoison run $(ARGS)

test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder $(ARGS)

# What to run while working: within two minutes.
fast: $(VENV)/.installed-test
	$(BIN)/pytest -m fast --numprocesses auto --dist loadfile $(ARGS)

# The documentation as a site, in build/site.
docs: $(VENV)/.installed-test
	$(BIN)/mkdocs build $(ARGS)

dev: $(VENV)/.installed-test
	@if command -v uv >/dev/null; then \
	  uv pip install --python $(BIN)/python -e '.[dev]'; \
	else \
	  $(BIN)/python -m pip install -e '.[dev]'; \
	fi
	$(BIN)/pre-commit install

# Rows where Heatmap Clustering fails at epsilon 0.02.
ANALYSED := standard-s3-p2-seed0 standard-s3-p5-seed0 \
  label-consistent-a128-p33-seed0 label-consistent-a64-p33-seed0 label-consistent-a32-p33-seed0

# The paper's tables, row by row, its figures, scans and repairs; what is recorded is left as it is.
# ARGS is for all (--data, --workdir), TABLE_ARGS for the tables (--protocol paper, --epochs).
paper: $(VENV)/.installed
	for table in table1 table2 table3 table4 table5; do \
	  $(BIN)/python -m experiments.$$table $(ARGS) $(TABLE_ARGS) || exit 1; \
	done
	$(BIN)/python -m experiments.summary
	for other in figures $(ANALYSED:%='two_clusters --row %') scans repairs; do \
	  $(BIN)/python -m experiments.$$other $(ARGS) || exit 1; \
	done

clean:
	rm -rf $(VENV)

$(VENV)/.installed: pyproject.toml
	@if command -v uv >/dev/null; then \
	  test -d $(VENV) || uv venv --python $(PYTHON) $(VENV); uv pip install --python $(BIN)/python -e .; \
	else \
	  test -d $(VENV) || $(PYTHON) -m venv $(VENV); $(BIN)/python -m pip install -e .; \
	fi
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@if command -v uv >/dev/null; then \
	  uv pip install --python $(BIN)/python -e '.[test]'; \
	else \
	  $(BIN)/python -m pip install -e '.[test]'; \
	fi
	touch $@
