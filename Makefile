# make demo   transcribe and tag a recording with the embedded model
# make test   everything the tests need, then the tests
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
SAMPLE ?= sample/street.ogg

.PHONY: demo test lint clean

demo: $(VENV)/.installed
	@$(BIN)/whisper-at $(SAMPLE) --model nano.en --fp16 False --at_time_res 4 --top_k 2 --p_threshold 0 --output_dir demo_output
	@echo "Transcripts and tags as files: demo_output/"

test: $(VENV)/.installed
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy
	$(BIN)/python -m pytest -q

lint: $(VENV)/.installed
	$(BIN)/python -m ruff check --fix .

$(VENV)/.installed: requirements.lock pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info demo_output
