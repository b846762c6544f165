# make VENV= TARGET uses the active Python and installs nothing.
VENV   ?= .venv
PYTHON ?= python3
PRESET ?= flickr8k-5min
ARGS   ?=

BIN   := $(if $(VENV),$(VENV)/bin/)
READY := $(if $(VENV),$(VENV)/.ready)
BENCH := $(if $(VENV),$(VENV)/.ready-bench)

.DEFAULT_GOAL := help
.PHONY: help setup train-tiny train record figures test bench lint loc clean

help:  ## this list
	@echo "make TARGET, one of:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{printf "%-14s%s\n", $$1, $$2}'
	@echo "PRESET=NAME chooses train's recipe, ARGS='--seed 1 …' adds options of \`miniclip train\`,"
	@echo "VENV= uses the active Python and installs nothing."

setup: $(READY)  ## create .venv and install what constraints.txt names

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) -V 2>&1). Name another: make PYTHON=python3.12 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
	  -c constraints.txt -e ".[test]"
	@touch $@

# The peers that benchmarks compare with; open_clip without torchvision, which it need not import.
$(VENV)/.ready-bench: $(READY)
	$(VENV)/bin/python -m pip install -q -c constraints.txt -e ".[bench]"
	$(VENV)/bin/python -m pip install -q -c constraints.txt --no-deps open_clip_torch
	@touch $@

train-tiny: $(READY)  ## train on 2,000 photographs of Flickr8k in minutes, into runs/tiny
	$(BIN)miniclip train --preset tiny $(ARGS)

train: $(READY)  ## train on all of Flickr8k (or shapes), into runs/PRESET; PRESET=flickr8k-5min
	$(BIN)miniclip train --preset $(PRESET) $(ARGS)

record:  ## keep the figures of runs/PRESET in miniclip/results/, where figures draws from them
	cp runs/$(PRESET)/metrics.json miniclip/results/$(PRESET).json
	cp runs/$(PRESET)/metrics.jsonl miniclip/results/$(PRESET).jsonl

figures: $(READY)  ## draw the README's pictures again from committed figures
	$(BIN)python -m miniclip.plots

test: $(READY)  ## run pytest
	$(BIN)python -m pytest $(ARGS)

bench: $(BENCH)  ## tokenizer and training speed beside open_clip and transformers
	$(BIN)python tests/bench_tokenizer.py
	$(BIN)python tests/bench_train.py

lint: $(READY)  ## ruff, on everything
	$(BIN)python -m ruff check .

loc: $(READY)  ## lines of code, room by room, and the budget
	$(BIN)python tests/loc.py

clean:  ## remove the environment and caches; runs/ stays
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
