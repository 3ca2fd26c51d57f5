# make demo        run the pipeline, print its scores and the path of the report
# make test        run all tests except the long ones
# make test-heavy  run the long tests: documentation, flows, experiments
# make lint        check the code and the documentation
# make docs        build the documentation
# Every target first installs the project into .venv, with Python >= 3.11. To choose a Python: make PYTHON=python3.12 demo

PYTHON ?= python3
SCORES := Experiment|pretrain\.(masking\.strategy|seed)$$|(knn|linear)\.[^.]+\.top1$$|part_scores\.[^.]+\.patch\.fg_iou$$
INSTALLED := .venv/.installed

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false

.PHONY: demo test test-heavy lint docs

demo: $(INSTALLED)
	dvc repro
	@dvc exp show --md --drop '.*' --keep '$(SCORES)'
	@echo "report: $(CURDIR)/results/report/index.html"

test test-heavy: export OMP_NUM_THREADS := 1
test test-heavy: export OMP_WAIT_POLICY := passive
test: $(INSTALLED)
	pytest -n 2 --dist worksteal -m "not heavy"

test-heavy: $(INSTALLED)
	pytest -n 2 --dist worksteal -m heavy

lint: $(INSTALLED)
	ruff check
	ruff format --check
	mypy
	zensical build --strict

docs: $(INSTALLED)
	zensical build --clean --strict
	@echo "site: $(CURDIR)/site/index.html"

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  f"Python >= 3.11 is needed, $(PYTHON) is {sys.version.split()[0]}; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@
