# make demo    environment, every notebook on the embedded demo, its table beside the published one
# make test    environment, the whole test suite
# make report  everything that records tell, as one page: outputs/results/report.html, demo/ beside it
# make env     the environment alone, in .venv
# make lint    ruff, and that the library's rooms import one way
# make audit   known vulnerabilities, what is not pinned or not used, and every licence
# make lock    resolve the pins anew: .ci/requirements.lock, after a change of environment.yml
# make bench   the races of benchmarks/README.md (DEVICE=cuda, ONLY="forward steps", SMALL=1)
# make badges REPO=owner/name    write the repository's address into notebooks and README
# make test-colab    the suite with the oldest versions supported: those Colab shipped in August 2026
# make clean   remove all that runs left: outputs/, your own results in it (results/ stays)

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
LANGUAGES ?= ca cs
SEEDS ?= 77
JOBS ?= 2
DEVICE ?= cpu

# torch from PyPI brings gigabytes of CUDA on Linux; a machine without a GPU takes the CPU build.
# An index that cannot be reached is passed over.
TORCH_INDEX ?= $(shell [ "$$(uname)" = Linux ] && ! command -v nvidia-smi >/dev/null && \
	echo --extra-index-url https://download.pytorch.org/whl/cpu)

export TOKENIZERS_PARALLELISM := false

# Every package is checked against its hash where the lock is for this machine: Linux on x86_64,
# Python 3.11, no GPU. Elsewhere, and with HASHES=no, versions alone are held to.
HASHES ?= $(if $(TORCH_INDEX),yes,no)
LOCK := .ci/lock.py

.PHONY: env demo report test test-colab bench lint audit lock badges clean

env: $(READY)

$(READY): environment.yml pyproject.toml .ci/requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit("Python %d.%d found, 3.11 to 3.13 needed: make PYTHON=python3.11 env" % v)'
	$(PYTHON) -m venv .venv
	sed -n 's/^ *- \([A-Za-z0-9._-]*==[^ ]*\)$$/\1/p' environment.yml > .venv/pins.txt
	@for part in torch rest constraints; do $(BIN)/python $(LOCK) $$part > .venv/$$part.txt || exit 1; done
	@if [ $(HASHES) = yes ] && $(BIN)/python $(LOCK) fits; then \
		echo 'installing by hash, from .ci/requirements.lock'; \
		PIP_RETRIES=0 $(BIN)/pip install --quiet --no-deps $(TORCH_INDEX) --require-hashes --requirement .venv/torch.txt 2> .venv/torch.log || { \
			echo 'torch: no build with the hash of the lock here, so it is taken by its version'; \
			PIP_RETRIES=0 $(BIN)/pip install --quiet --no-deps $(TORCH_INDEX) "$$(grep '^torch==' .venv/pins.txt)"; } && \
		$(BIN)/pip install --quiet --no-deps --require-hashes --requirement .venv/rest.txt || { \
			echo 'a package is not what .ci/requirements.lock says: do not trust the index, or make env HASHES=no'; exit 1; }; \
	else \
		echo 'installing by version'; \
		PIP_RETRIES=0 $(BIN)/pip install --quiet --no-deps $(TORCH_INDEX) "$$(grep '^torch==' .venv/pins.txt)" && \
		$(BIN)/pip install --quiet --constraint .venv/constraints.txt --requirement .venv/pins.txt; \
	fi
	PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $(READY)

DEMO := --preset demo --languages $(LANGUAGES) --seeds $(SEEDS) --jobs $(JOBS)

demo: env
	$(BIN)/python -m distilwhisper_lib batch run 04 05 06 08 $(DEMO) --overrides '{"recipe": "decisive"}'
	$(BIN)/python -m distilwhisper_lib batch run $(DEMO)
	@$(BIN)/python -m distilwhisper_lib results show --demo --compare

report: env
	$(BIN)/python -m distilwhisper_lib results report

test: env
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

# torch stays as it is there; packages that Colab does not pin follow from these.
COLAB := transformers==5.15.0 datasets==4.0.0 peft==0.20.0 accelerate==1.14.0 pandas==2.2.3 \
	numpy==2.1.3 ipywidgets==7.7.1
COLAB_FOLLOWS := tokenizers|huggingface_hub|safetensors|pyarrow|matplotlib

test-colab: env
	$(PYTHON) -m venv .venv-colab
	printf '%s\n' $(COLAB) > .venv-colab/pins.txt
	grep -vE "^($$(printf '%s|' $(COLAB) | sed 's/==[^|]*//g')$(COLAB_FOLLOWS))==" .venv/pins.txt >> .venv-colab/pins.txt
	PIP_RETRIES=0 .venv-colab/bin/pip install --quiet --no-deps $(TORCH_INDEX) "$$(grep '^torch==' .venv/pins.txt)"
	.venv-colab/bin/pip install --quiet --requirement .venv-colab/pins.txt matplotlib
	.venv-colab/bin/pip install --quiet --no-deps --editable .
	.venv-colab/bin/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

bench: env
	$(BIN)/python -m benchmarks --device $(DEVICE) $(if $(SMALL),--small) $(if $(ONLY),--only $(ONLY))
	@$(BIN)/python -m benchmarks.races.report

audit: env
	$(BIN)/python .ci/audit.py

lock:
	$(PYTHON) $(LOCK) write

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python .ci/house.py --check

badges: env
	$(BIN)/python .ci/badges.py $(REPO)

clean:
	rm -rf outputs
