# make VENV= TARGET uses the active Python and installs nothing.
VENV   ?= .venv
PYTHON ?= python3
PRESET ?= flickr8k-5min
RECORDS ?= miniclip/results
ARGS   ?=

KERNEL_TESTS := tests/kernels/test_clip_loss.py tests/kernels/test_parity.py \
                tests/kernels/test_mutants.py tests/kernels/test_reference.py \
                tests/kernels/test_sigmoid.py
KERNEL_BENCH := kernels/benchmarks
BIN   := $(if $(VENV),$(VENV)/bin/)
READY := $(if $(VENV),$(VENV)/.ready)
BENCH := $(if $(VENV),$(VENV)/.ready-bench)

NEEDS_GPU = $(BIN)python -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "make $@ needs a CUDA GPU; PyTorch sees none")'

.DEFAULT_GOAL := help
.PHONY: help setup train-tiny train record transfer experiments lecture-table figures test faults quick test-gpu sanitize-gpu lessons check bench bench-scale bench-gpu tune-gpu bench-plots lint loc clean

help:  ## this list
	@echo "make TARGET, one of:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{printf "%-16s%s\n", $$1, $$2}'
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

record:  ## keep the figures of runs/PRESET in RECORDS=miniclip/results, where figures draws from them
	mkdir -p $(RECORDS)
	cp runs/$(PRESET)/metrics.json $(RECORDS)/$(PRESET).json
	cp runs/$(PRESET)/metrics.jsonl $(RECORDS)/$(PRESET).jsonl

# Each figure beside its picture; some eight minutes on two cores.
TRANSFER := $(RECORDS)/transfer
transfer: $(READY)  ## what transfers: score runs/shapes in segmentation, detection and probes
	@mkdir -p $(TRANSFER)
	@test -d runs/shapes || { echo "make transfer needs runs/shapes: make train PRESET=shapes"; exit 1; }
	$(BIN)miniclip segment --data shapes --model runs/shapes --json \
	  --plot $(TRANSFER)/segment.png > $(TRANSFER)/segment.json
	$(BIN)miniclip detect --data shapes --model runs/shapes --json --threshold 0.24 \
	  --plot $(TRANSFER)/detect.png > $(TRANSFER)/detect.json
	$(BIN)miniclip relations runs/shapes --json --plot $(TRANSFER)/relations.png \
	  > $(TRANSFER)/relations.json
	for style in plain sketch; do $(BIN)miniclip probe runs/shapes --data shapes --style $$style --json \
	  --plot $(TRANSFER)/probe-$$style.png > $(TRANSFER)/probe-$$style.json; done

# What README and chapter 15 show. It needs runs/flickr8k-20min and the photographs it was trained on.
EXPERIMENTS := $(RECORDS)/experiments
PHOTOGRAPHS := $(or $(MINICLIP_DATA),jxie/flickr8k)
experiments: $(READY)  ## labels or captions? word by word or contrast? some two hours on two cores
	@mkdir -p $(EXPERIMENTS)
	@test -d runs/flickr8k-20min || { echo "make experiments needs make train PRESET=flickr8k-20min"; exit 1; }
	$(BIN)miniclip robustness --data shapes --sweep --steps 200 --json > $(EXPERIMENTS)/sweep-shapes.json
	$(BIN)miniclip robustness --data shapes --seeds 5 --json --plot $(EXPERIMENTS)/shapes.png \
	  > $(EXPERIMENTS)/shapes.json
	$(BIN)miniclip robustness --data shapes --steps 800 --json > $(EXPERIMENTS)/shapes-longer.json
	$(BIN)miniclip efficiency --sweep --steps 100 --json > $(EXPERIMENTS)/sweep-efficiency.json
	$(BIN)miniclip efficiency --seeds 3 --json --plot $(EXPERIMENTS)/efficiency.png \
	  > $(EXPERIMENTS)/efficiency.json
	$(BIN)miniclip efficiency --credits --seeds 3 --json --plot $(EXPERIMENTS)/efficiency-credits.png \
	  > $(EXPERIMENTS)/efficiency-credits.json
	$(BIN)miniclip efficiency --data $(PHOTOGRAPHS) --sweep --steps 150 --json \
	  > $(EXPERIMENTS)/sweep-efficiency-photographs.json
	$(BIN)miniclip efficiency --data $(PHOTOGRAPHS) --seeds 3 --json \
	  --plot $(EXPERIMENTS)/efficiency-photographs.png > $(EXPERIMENTS)/efficiency-photographs.json
	$(BIN)miniclip robustness runs/flickr8k-20min --data $(PHOTOGRAPHS) --sweep --steps 150 --json \
	  > $(EXPERIMENTS)/sweep-photographs.json
	$(BIN)miniclip robustness runs/flickr8k-20min --data $(PHOTOGRAPHS) --seeds 3 --json \
	  --plot $(EXPERIMENTS)/photographs.png > $(EXPERIMENTS)/photographs.json

lecture-table: $(READY)  ## the lecture's robustness table, from the Hub: needs timm, and better a GPU
	$(BIN)miniclip robustness openai/clip-vit-large-patch14-336 --plot robustness.png $(ARGS)

figures: $(READY)  ## draw every picture again: README's, benchmarks' and lessons'
	$(BIN)python -m miniclip.plots
	$(BIN)python $(KERNEL_BENCH)/bench_clip_loss.py --plot
	MINICLIP_DRAW=1 $(BIN)python -m pytest -q lessons
	$(BIN)python -m miniclip.plots runs/lessons

# One process for each core, each of one thread: most tests are Python's own work.
PYTEST := OMP_NUM_THREADS=1 $(BIN)python -m pytest -n auto --dist loadfile

test: $(READY)  ## every test: tests/ and the lessons, some ten minutes
	$(PYTEST) --no-loadscope-reorder $(ARGS)

faults: $(READY)  ## tests/faults many times over: killed, starved and fuzzed, for an hour or two
	MINICLIP_FAULTS=50 MINICLIP_FUZZ=1000 $(PYTEST) tests/faults $(ARGS)

quick: $(READY)  ## what to run before each commit: ruff, and the tests that are not slow
	$(BIN)python -m ruff check .
	$(PYTEST) -q tests -m "not slow" $(ARGS)

test-gpu: $(READY)  ## the kernels' tests on a CUDA GPU
	@$(NEEDS_GPU)
	@# Nearly a thousand variants of the kernels are compiled: in one process for each core, up to 16.
	@# The warps of "hopper" wait for each other. So a few of its tests go first, with a time limit.
	@in_parts() { pids=; failed=0; n=$$(nproc); [ $$n -le 16 ] || n=16; for i in $$(seq 0 $$((n - 1))); do \
	  OMP_NUM_THREADS=1 timeout 420 $(BIN)python -m pytest -q --tb=short --part $$i/$$n "$$@" $(ARGS) & pids="$$pids $$!"; done; \
	  for pid in $$pids; do wait $$pid || [ $$? -eq 5 ] || failed=1; done; return $$failed; }; \
	in_parts $(KERNEL_TESTS); result=$$?; \
	timeout 90 $(BIN)python -m pytest -q -x --tb=short tests/kernels/test_hopper.py -k "no_tile or 300-300-512 or 640"; \
	case $$? in 0) in_parts tests/kernels/test_hopper.py || result=1;; 5) ;; *) result=1;; esac; exit $$result

sanitize-gpu: $(READY)  ## some of them under compute-sanitizer, each tool with a time limit
	@$(NEEDS_GPU)
	@# initcheck knows what descriptors write, as "blocks" and "hopper" do, since CUDA 13.1 only.
	@# Only memcheck has been tried on "hopper". Whether racecheck knows barriers between groups of
	@# warps is not known yet.
	@failed=0; sanitize() { echo "$$@"; PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout 150 compute-sanitizer \
	  --error-exitcode 1 --tool $$1 $(BIN)python -m pytest -q -x --tb=short $$2 -k "$$3" || [ $$? -eq 5 ] || failed=1; }; \
	some="(test_ids or test_strides or test_structure) and not tiled"; \
	sanitize memcheck tests/kernels/test_parity.py "$$some"; \
	sanitize racecheck tests/kernels/test_parity.py "$$some"; \
	sanitize initcheck tests/kernels/test_parity.py "$$some and not blocks"; \
	sanitize memcheck tests/kernels/test_hopper.py "test_it_is_right and (300 or 640)"; exit $$failed

lessons: $(READY)  ## run the code of every chapter, a line for each
	$(BIN)python -m pytest -q lessons $(ARGS)

check: $(READY)  ## is the exercise of chapter N=08 right, and if not, what is wrong?
	@$(BIN)python lessons/check.py $(N)

bench: $(BENCH)  ## tokenizer, training, features, search beside peers; the loss on every backend
	$(BIN)python tests/benchmarks/bench_tokenizer.py
	$(BIN)python tests/benchmarks/bench_train.py
	$(BIN)python tests/benchmarks/bench_pretrained.py
	$(BIN)python tests/benchmarks/bench_search.py
	$(BIN)python $(KERNEL_BENCH)/bench_launch.py
	$(BIN)python $(KERNEL_BENCH)/bench_uses.py
	$(BIN)python $(KERNEL_BENCH)/bench_clip_loss.py

bench-scale: $(READY)  ## training from shards, in processes, with huge batches, for 20,000 steps
	$(BIN)python tests/benchmarks/bench_scale.py --out $(RECORDS)/experiments/scale.json $(ARGS)
	$(BIN)miniclip scaling --measure --json --plot $(RECORDS)/experiments/scaling.png \
	  > $(RECORDS)/experiments/scaling.json

bench-gpu: $(READY)  ## the kernel beside its peers on a CUDA GPU, into kernels/results
	$(BIN)python $(KERNEL_BENCH)/bench_clip_loss.py --gpu $(ARGS)
	$(BIN)python $(KERNEL_BENCH)/bench_uses.py --gpu

tune-gpu: $(READY)  ## which tile sizes are fastest on this CUDA GPU, into kernels/results/tiles
	$(BIN)python $(KERNEL_BENCH)/tune_clip_loss.py $(ARGS)

bench-plots: $(READY)  ## draw kernels/results again
	$(BIN)python $(KERNEL_BENCH)/bench_clip_loss.py --plot

lint: $(READY)  ## ruff, on everything
	$(BIN)python -m ruff check .

loc: $(READY)  ## lines of code, room by room
	$(BIN)python tests/helpers/loc.py

clean:  ## remove the environment and caches; runs/ stays
	rm -rf $(VENV) build kernels/build *.egg-info kernels/*.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
