# make demo   transcribe and tag a recording with the embedded model
# make test   everything the tests need, then the tests
# make bench  timings beside other Whispers, of tiny (SIZE=small make bench), into benchmarks/results/SIZE/
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
SAMPLE ?= sample/street.ogg
SIZE   ?= tiny
RESULTS = benchmarks/results/$(SIZE)
BENCH   = $(BIN)/python benchmarks/

.PHONY: demo test bench lint clean

demo: $(VENV)/.installed
	@$(BIN)/whisper-at $(SAMPLE) --model nano.en --fp16 False --at_time_res 4 --top_k 2 --p_threshold 0 --output_dir demo_output
	@echo "Transcripts and tags as files: demo_output/"

test: $(VENV)/.installed
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy
	$(BIN)/python -m pytest -q

bench: $(VENV)/.installed
	mkdir -p $(RESULTS)
	$(BENCH)stages.py --sizes $(SIZE) --json $(RESULTS)/stages.json --plot $(RESULTS)/stages.png
	$(BENCH)tagging.py --sizes $(SIZE) --minutes 1 --json $(RESULTS)/tagging.json --plot $(RESULTS)/tagging.png
	$(BENCH)step.py --sizes $(SIZE) --json $(RESULTS)/step.json
	$(BENCH)scaling.py --size $(SIZE) --minutes 5 --json $(RESULTS)/scaling.json --plot $(RESULTS)/scaling.png
	$(BENCH)peers.py --size $(SIZE) --minutes 6 --repeat 3 --json $(RESULTS)/peers.json --plot $(RESULTS)/peers.png

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
