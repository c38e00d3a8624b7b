# cxr_node from a fresh clone. `make` without a target lists the targets.
#
# Variables: PYTHON (the interpreter for .venv), PIP_OPTIONS (options for pip), WORKERS (of pytest),
# PYTEST_OPTIONS (such as "-k receive"), MINUTES (of soak), DATA (of gpu: the folder of manifest.csv).

SHELL := /bin/bash
.NOTPARALLEL:
.DEFAULT_GOAL := help
export PYTHON PIP_OPTIONS
# Hundreds of processes of the tests import the program: without compiled modules each would compile it anew.
unexport PYTHONDONTWRITEBYTECODE

WORKERS ?= 3
PYTEST_OPTIONS ?=
MINUTES ?= 10
DATA ?= ../shared/data
installation := setup.cfg pyproject.toml constraints.txt scripts/install

.PHONY: help
help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Stamp files: pip runs only when its input has changed.
.venv/.installed: $(installation)
	scripts/install openvino,web

.venv/.installed-dev: $(installation)
	scripts/install web,test,dev

.PHONY: setup
setup: .venv/.installed-dev  ## make .venv and install everything for running, testing and developing

.PHONY: demo
demo: .venv/.installed  ## radiographs into the node, overlays and reports into a PACS, and the page to look at (in a terminal until Ctrl-C)
	.venv/bin/cxr-node demo $$([ -t 1 ] && echo --keep)

.PHONY: peers
peers:  ## install the programs that tests use, where that is allowed
	scripts/install-peers

.PHONY: check
check: .venv/.installed-dev  ## lint, formatting, types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

.PHONY: test
test: .venv/.installed-dev peers check  ## run all checks and tests, `validate` included
	.venv/bin/python -m pytest -n $(WORKERS) --dist loadgroup -rs $(PYTEST_OPTIONS)

.PHONY: validate
validate: .venv/.installed-dev peers  ## check every kind of result with validators, an archive and viewers; pictures in test-output
	.venv/bin/python -m pytest -n $(WORKERS) --dist loadgroup -rs $(PYTEST_OPTIONS) \
		tests/acceptance/test_compose_validators.py tests/acceptance/test_result_matrix.py tests/acceptance/test_viewers.py \
		tests/unit/test_conformance.py tests/unit/test_compose_codes.py

.PHONY: docs
docs: .venv/.installed-dev  ## generate docs/settings.md and the tables of docs/conformance.md
	.venv/bin/python -m scripts.generate_docs

.PHONY: image-test
image-test: .venv/.installed-dev peers  ## build the image, run it, send it radiographs (as root; the first build takes minutes)
	.venv/bin/python -m pytest -rs --durations 3 $(PYTEST_OPTIONS) tests/acceptance/test_image.py

.PHONY: bench
bench: .venv/.installed-dev peers  ## the benchmarks, in a short form
	.venv/bin/python -m benchmarks.receive --repetitions 1 --seconds 1
	.venv/bin/python -m benchmarks.turnaround --quick
	.venv/bin/python -m benchmarks.load --quick
	.venv/bin/python -m benchmarks.inference --repeats 1

.PHONY: campaign-hosts
campaign-hosts: .venv/.installed-dev peers  ## 4 hosts in network namespaces, 2,000 images, cut links, killed hosts (as root)
	rm -rf test-output/hosts
	.venv/bin/python -m tests.faults.hosts --images 2000 --hosts 4 --out test-output/hosts

.PHONY: soak
soak: .venv/.installed-dev peers  ## run the fault campaign for MINUTES; plot memory, handles and threads
	rm -rf test-output/soak
	.venv/bin/python -m tests.faults.soak --minutes $(MINUTES) --out test-output/soak

# Release tools have their own environment, so that their dependencies stay out of the program's.
.tools/.installed: Makefile
	$(or $(PYTHON),python3) -m venv --clear .tools
	.tools/bin/pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) uv==0.13.8 cyclonedx-bom==7.5.0
	touch $@

.PHONY: lock
lock: .tools/.installed  ## pin all dependencies with hashes in requirements.lock
	.tools/bin/uv pip compile setup.cfg --extra web --extra scale --extra openvino -c constraints.txt --generate-hashes --python-version 3.11 \
		--quiet --custom-compile-command 'make lock' --output-file requirements.lock

.PHONY: sbom
sbom: .tools/.installed  ## write the software bill of materials of requirements.lock (CycloneDX) to dist/sbom.json
	mkdir -p dist
	.tools/bin/cyclonedx-py requirements requirements.lock --output-file dist/sbom.json

.PHONY: fuzz
fuzz: .venv/.installed-dev  ## fuzz the parsers (a million inputs), the decoders and the listener (100,000 PDUs)
	.venv/bin/python -m tests.fuzz

.PHONY: gpu
gpu: .venv/.installed-dev  ## train on a GPU and measure (meant for 30 minutes; not yet run), with the radiographs in DATA; weights and figures in runs/gpu/home
	scripts/train-on-gpu $(DATA)

.PHONY: clean
clean:  ## remove .venv, build results and caches; data and training runs stay
	rm -rf .venv .tools .peers build dist demo-output test-output .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -rf ./*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
