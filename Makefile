# Each target sets up .venv if it is missing or older than a project file.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
PLUGINS := $(sort $(dir $(wildcard plugins/*/pyproject.toml)))
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: browser demo docs reference test fuzz fuzz-bytes faults soak coverage mutation mutation-kernels test-all-tasks test-lm-eval test-lowest
.PHONY: lint bench pages setup setup-hashed setup-unpinned hashes audit release-check clean

demo: $(READY)            ## train a small language model, evaluate it with Lightning and with lm-eval, compare
	$(BIN)/python -m xent_metrics.demo $(DEMO_ARGS)

# First with torch alone; then the tests of scoring and of models once more with the C plugin; then the Triton plugin's, by
# Triton's interpreter. Triton's wheels are for Linux.
NATIVE_TESTS := plugins/xent-metrics-native/tests tests/scoring tests/sums/test_metric.py tests/test_collection.py \
  tests/metrics/test_metrics.py tests/testing/test_contract.py tests/hosts/lm_eval/models
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -q

test: $(READY) browser    ## run every test, doctests included
	XENT_METRICS_PLUGINS=emd,focal $(PYTEST) --ignore=plugins/xent-metrics-native/tests --ignore=plugins/xent-metrics-triton/tests $(TEST_ARGS)
	$(PYTEST) $(NATIVE_TESTS) $(TEST_ARGS)
	[ "$$(uname)" != Linux ] || TRITON_INTERPRET=1 XENT_METRICS_PLUGINS=triton $(PYTEST) plugins/xent-metrics-triton/tests $(TEST_ARGS)

ATTACK := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[attack]'
# One folder after the other: one that fails leaves the figures of the others. TEST_FOLDERS=tests/sums measures one.
TEST_FOLDERS ?= $(sort $(filter-out tests/mutation/ tests/support/,$(wildcard tests/*/))) "$(wildcard tests/test_*.py)" \
  xent_metrics "$(addprefix plugins/xent-metrics-,emd focal selective surprisal)"
coverage: $(READY) browser ## measure the branch coverage of the package, with torch alone (slower than make test)
	$(ATTACK)
	rm -rf build/coverage && mkdir -p build/coverage
	for folder in $(TEST_FOLDERS); do XENT_METRICS_PLUGINS=emd,focal OMP_NUM_THREADS=1 $(BIN)/python -m coverage run -m pytest -n 2 --dist loadfile -q $$folder $(TEST_ARGS); done
	$(BIN)/python -m coverage combine -q && $(BIN)/python -m coverage report

MODULES ?= xent_metrics/sums xent_metrics/scoring xent_metrics/metrics
SAMPLE ?= 300
mutation: $(READY)        ## change the code at random and see whether a test fails: MODULES=xent_metrics/sums/sync.py SAMPLE=-1 for all
	$(ATTACK)
	PYTHONPATH=tests $(BIN)/python -m mutation.python_mutants --sample $(SAMPLE) $(MUTATION_ARGS) $(MODULES)

mutation-kernels: $(READY) ## the same with changes of the C and Triton kernels that were made by hand
	PYTHONPATH=tests $(BIN)/python -m mutation.kernel_mutants native
	PYTHONPATH=tests $(BIN)/python -m mutation.kernel_mutants triton

FUZZ := tests/sums/test_exact_sum.py tests/sums/test_metric_life.py tests/scoring/test_score_fuzz.py \
  tests/scoring/test_token_bytes_fuzz.py tests/analysis/test_runs_fuzz.py tests/doctor/test_tasks_fuzz.py
fuzz: $(READY)            ## look for counterexamples to exact sums, to scores and to the life of a metric (minutes)
	HYPOTHESIS_PROFILE=fuzz OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(FUZZ) $(TEST_ARGS)

BYTES := results samples parquet yaml metrics journal
SECONDS ?= 120
fuzz-bytes: $(READY)      ## change bytes of what is read from files, SECONDS for each kind, guided by coverage (Linux)
	$(ATTACK)
	for target in $(BYTES); do PYTHONPATH=tests $(BIN)/python -m support.byte_fuzz $$target -max_total_time=$(SECONDS) || exit 1; done

KILLS ?= 100
faults: $(READY)          ## kill what writes files at random moments, KILLS times each, and look for torn files (minutes)
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m support.kills $(KILLS)

soak: $(READY)            ## train and evaluate in two processes for an hour: nothing grows, no bit changes
	$(BIN)/python benchmarks/soak.py $(or $(SOAK_ARGS),--minutes 60)

test-all-tasks: $(READY)  ## put metrics on all tasks that lm-eval ships, as far as that goes without their data (minutes)
	ALL_TASKS=1 $(BIN)/python -m pytest -q -s tests/hosts/lm_eval/test_shipped_tasks.py tests/doctor/test_tasks.py

LM_EVAL ?= pre
test-lm-eval:             ## run the tests of the lm-eval host with another lm-eval: LM_EVAL=version, pre or a checkout's path
	.ci/test_lm_eval.sh $(LM_EVAL) $(TEST_ARGS)

lint: $(READY)            ## run ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)            ## build the documentation's site into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

reference: $(READY)       ## write the README's table of metrics and docs/errors.md from their classes
	$(BIN)/python docs/tools/docs_reference.py

BENCHMARKS := $(filter-out benchmarks/claims.py,$(wildcard benchmarks/*.py))
bench: $(READY)           ## measure every claim about speed and memory beside its peer
	failed=0; for file in $(BENCHMARKS); do echo "== $$file"; $(BIN)/python $$file || failed=1; done; exit $$failed

pages: $(READY)           ## run the scripts of the tutorials and guides, and write their output into the pages
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m support.pages docs/tutorials/*.md docs/guides/why_numbers_differ.md

setup: $(READY)           ## install everything that is tested into .venv

setup-hashed:             ## the same of archives with the hashes in .ci/hashes.txt, all but torch
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check --force-reinstall --no-deps --require-hashes -r .ci/hashes.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -e . $(PLUGINS)
	touch $(READY)

# torch has builds of its own, such as those for CPUs, that PyPI doesn't list.
hashes:                   ## write .ci/hashes.txt: the SHA-256 of each archive on PyPI of the versions in constraints.txt
	$(PYTHON) -m venv build/hashes && build/hashes/bin/python -m pip install -q --disable-pip-version-check uv
	grep -v '^torch==' constraints.txt | build/hashes/bin/uv pip compile -q --no-deps --no-annotate --no-header --generate-hashes - -o .ci/hashes.txt

audit:                    ## look the pinned versions up among known vulnerabilities, by a service of PyPI
	$(PYTHON) -m venv build/audit && build/audit/bin/python -m pip install -q --disable-pip-version-check pip-audit
	build/audit/bin/pip-audit --strict --disable-pip --require-hashes -r .ci/hashes.txt

setup-unpinned:           ## the same with other versions than the pinned: RESOLUTION=highest, or lowest-direct for the oldest
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check uv
	$(BIN)/uv pip install -q --python $(BIN)/python --torch-backend cpu --resolution $(or $(RESOLUTION),highest) -e '.[dev]'
	$(BIN)/uv pip install -q --python $(BIN)/python --no-deps $(PLUGINS)
	touch $(READY)

test-lowest:              ## run every test with the lowest versions that pyproject.toml allows, in build/lowest: PYTHON=python3.10
	$(MAKE) setup-unpinned VENV=build/lowest RESOLUTION=lowest-direct
	$(MAKE) test VENV=build/lowest

release-check:            ## build all packages as they are published, and try each where nothing else is installed
	$(PYTHON) .ci/release_check.py

# A real browser for the tests of the report.
browser:
	@command -v chromedriver >/dev/null || { sudo=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	  $$sudo apt-get update -qq && $$sudo apt-get install -y -qq chromium chromium-driver >/dev/null; }

# torch goes first, so that pip keeps the pinned build.
$(READY): pyproject.toml constraints.txt $(addsuffix pyproject.toml,$(PLUGINS))
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps $(PLUGINS)
	touch $(READY)

clean:                    ## remove .venv and what builds and demos wrote
	rm -rf $(VENV) demo_run build dist
