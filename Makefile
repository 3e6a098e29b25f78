# make demo | small | paper | sensitivity | test | lint | report | data | catalogue | retry | clean | help.
# Needs Python 3.11 and make, nothing else.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3.11
VENV := .venv
READY := $(VENV)/.ready
DEMO := results/demo
SMALL := results/small
SENSITIVITY := results/sensitivity
PAPER := results/paper
RUN := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"
SNAKEMAKE := $(RUN) snakemake --profile workflow/profiles/demo

.PHONY: help demo small paper sensitivity report data catalogue test lint format retry clean

help:  ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 13

# The pins live in one place, envs/bench.yaml, which --use-conda reads too.
$(READY): envs/bench.yaml envs/bench.post-deploy.sh envs/dev.txt pyproject.toml
	@command -v $(PYTHON) > /dev/null || { echo "make needs $(PYTHON); say PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
	  || { echo "make needs Python 3.11, $(PYTHON) is $$($(PYTHON) --version)"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	sed -n 's/^      - \(.*==.*\)/\1/p' envs/bench.yaml > $(VENV)/pins.txt
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r $(VENV)/pins.txt -r envs/dev.txt
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(VENV)/bin/pip check
	$(RUN) bash envs/bench.post-deploy.sh
	touch $(READY)

demo: $(READY)  ## run the demonstration, then write its report (minutes, two cores, no network)
	$(SNAKEMAKE)
	@$(MAKE) --no-print-directory report

sensitivity: $(READY)  ## run SC-MAMBA2 in every mode and with every defect on the demonstration's cells (minutes)
	$(SNAKEMAKE) --configfile workflow/sensitivity.yaml
	@echo "table    $(SENSITIVITY)/sensitivity.csv"

small: $(READY)  ## run every method that a CPU can run on a piece of PBMC 10k (about half an hour, two cores)
	$(SNAKEMAKE) --configfile workflow/small.yaml
	@echo "report   $(SMALL)/index.html"

report: $(READY)  ## write the report of the demonstration again
	@rm -rf $(DEMO)/report
	$(SNAKEMAKE) --report $(DEMO)/report.zip > $(DEMO)/logs/report.log 2>&1 \
	  || { cat $(DEMO)/logs/report.log; exit 1; }
	@$(VENV)/bin/python -m zipfile -e $(DEMO)/report.zip $(DEMO)
	@echo "report   $(DEMO)/index.html (one page) and $(DEMO)/report/report.html (with its workflow)"

paper: $(READY)  ## run the paper's selection (days, a GPU, conda), then fail if a headline table lacks a row
	$(RUN) snakemake --cores all --use-conda
	@$(RUN) python -m workflow.steps.gate --results $(PAPER)

data: $(READY)  ## say which data are here and what the rest needs; DATASETS="ms norman" asks for these only
	$(RUN) python -m workflow.steps.inventory $(DATASETS)

catalogue: $(READY)  ## write the catalogue of datasets into results/README.md again
	sed -i '/^<!-- catalogue/q' results/README.md
	$(RUN) python -m workflow.steps.inventory --markdown >> results/README.md

# One process per core, four at most (each holds up to 2 GB); a file of tests stays in one process, as what its
# tests share is made once. By hand, `pytest tests/...` runs one after the other.
test: $(READY)  ## run all tests, up to four at once
	$(RUN) python -m pytest -n logical --maxprocesses 4 --dist loadscope --no-loadscope-reorder

lint: $(READY)  ## check style, types and the workflow
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) snakefmt --check Snakefile workflow/rules
	$(RUN) mypy
	$(RUN) snakemake --lint

format: $(READY)  ## format all code
	$(RUN) ruff format . && ruff check --fix . && snakefmt Snakefile workflow/rules

retry: $(READY)  ## forget the runs and downloads of the demonstration that failed, and run it again
	$(RUN) python -m workflow.steps.forget $(DEMO)
	@$(MAKE) --no-print-directory demo

clean:  ## delete the environment and the results of demo, small and sensitivity
	rm -rf $(VENV) $(DEMO) $(SMALL) $(SENSITIVITY)
