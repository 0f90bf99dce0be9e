# make demo    environment, every notebook on the embedded demo, the results table
# make test    environment, the whole test suite
# make env     the environment alone, in .venv
# make lint    ruff
# make badges REPO=owner/name    write the repository's address into notebooks and README
# make clean   remove what runs left in outputs/ (records in results/ stay)

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
LANGUAGES ?= ca cs
SEEDS ?= 77

# torch from PyPI brings gigabytes of CUDA on Linux; a machine without a GPU takes the CPU build.
# An index that cannot be reached is passed over.
TORCH_INDEX ?= $(shell [ "$$(uname)" = Linux ] && ! command -v nvidia-smi >/dev/null && \
	echo --extra-index-url https://download.pytorch.org/whl/cpu)

export TOKENIZERS_PARALLELISM := false

.PHONY: env demo test lint badges clean

env: $(READY)

$(READY): environment.yml pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit("Python %d.%d found, 3.11 to 3.13 needed: make PYTHON=python3.11 env" % v)'
	$(PYTHON) -m venv .venv
	sed -n 's/^ *- \([A-Za-z0-9._-]*==[^ ]*\)$$/\1/p' environment.yml > .venv/pins.txt
	PIP_RETRIES=0 $(BIN)/pip install --quiet --no-deps $(TORCH_INDEX) "$$(grep '^torch==' .venv/pins.txt)"
	$(BIN)/pip install --quiet --requirement .venv/pins.txt
	$(BIN)/pip install --quiet --no-deps --editable .
	@touch $(READY)

demo: env
	$(BIN)/python -m distilwhisper_lib.batch run --preset demo --languages $(LANGUAGES) --seeds $(SEEDS)
	@$(BIN)/python -m distilwhisper_lib.results show --demo

test: env
	$(BIN)/python -m pytest

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

badges: env
	$(BIN)/python -m distilwhisper_lib.badges $(REPO)

clean:
	rm -rf outputs
