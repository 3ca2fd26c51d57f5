# make demo        run the pipeline, print its scores and the path of the report
# make test        run all tests except the long ones
# make test-heavy  run the long tests: documentation, flows, experiments
# make lint        check the code and the documentation
# make docs        build the documentation
# Every target first installs what it needs into .venv, with Python >= 3.11: `make demo` the project, the other targets
# also the extra `dev`. To choose a Python: make PYTHON=python3.12 demo

PYTHON ?= python3
INSTALLED := .venv/.installed
INSTALLED_DEV := .venv/.installed-dev

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false

.PHONY: demo test test-heavy lint docs

demo: $(INSTALLED)
	dvc repro
	@semmae scores
	@echo "report: $(CURDIR)/results/report/index.html"

test test-heavy: export OMP_NUM_THREADS := 1
test test-heavy: export OMP_WAIT_POLICY := passive
test: $(INSTALLED_DEV)
	pytest -n 2 --dist worksteal -m "not heavy"

test-heavy: $(INSTALLED_DEV)
	pytest -n 2 --dist worksteal -m heavy

lint: $(INSTALLED_DEV)
	ruff check
	ruff format --check
	mypy
	zensical build --strict

docs: $(INSTALLED_DEV)
	zensical build --clean --strict
	@echo "site: $(CURDIR)/site/index.html"

# Install the project with the given extras. uv takes a fraction of the time of pip; pip installs if there is no uv, or
# if uv fails.
define install
	@command -v uv > /dev/null || .venv/bin/python -m pip install --quiet --retries 1 -c constraints.txt uv || true
	@echo "installing the project$(if $(1), with the extra $(1)) into .venv"
	@{ command -v uv > /dev/null && $(UV_ENVIRONMENT) uv pip install --quiet --python .venv/bin/python $(UV_OPTIONS) \
	  -c constraints.txt -e ".$(1)"; } || .venv/bin/python -m pip install --quiet -c constraints.txt -e ".$(1)"
endef

# uv does not read the configuration of pip, so its package indexes are passed on.
pip_config = $(shell .venv/bin/python -m pip config list | sed -n "s/.*\.$(1)='\(.*\)'$$/\1/p" | sed 's/\\n/ /g')
UV_OPTIONS = $(addprefix --default-index=,$(lastword $(call pip_config,index-url))) \
  $(addprefix --index=,$(call pip_config,extra-index-url)) \
  $(if $(call pip_config,extra-index-url),--index-strategy=unsafe-best-match) \
  $(addprefix --find-links=,$(sort $(call pip_config,find-links)))
UV_ENVIRONMENT = $(addprefix SSL_CERT_FILE=,$(lastword $(call pip_config,cert)))

$(INSTALLED): pyproject.toml constraints.txt | .venv/bin/pip
	$(call install)
	@touch $@

$(INSTALLED_DEV): pyproject.toml constraints.txt | .venv/bin/pip
	$(call install,[dev])
	@touch $(INSTALLED) $@

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  f"Python >= 3.11 is needed, $(PYTHON) is {sys.version.split()[0]}; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
