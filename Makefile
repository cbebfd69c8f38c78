# `make quickstart` and `make test` each do all their own set-up, once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CHOSEN := $(VENV)/.torch
LONGREEL := $(BIN)/longreel
PINS = $(if $(filter keep,$(TORCH)),$(VENV)/constraints.txt,constraints.txt)
PIP = $(BIN)/pip install -qq --disable-pip-version-check --no-compile -c $(PINS)

# Which torch. The bare pin of `default` is what your own package index has under that version: a public one gives the
# build for CUDA 13 (2.7 GB with what it needs, and a driver of 580 or newer). The others are torch's own builds, and
# `keep` takes the torch that $(PYTHON) has, or that of the environment that VENV names.
BEFORE := $(or $(shell cat $(CHOSEN) 2>/dev/null),default)
TORCH ?= $(BEFORE)
TORCH_INDEX ?= https://download.pytorch.org/whl
BUILDS := default keep cpu cu126 cu128 cu130
DRIVER_default := on a GPU node longreel doctor says whether it fits the driver
DRIVER_keep := whatever it was built for
DRIVER_cpu := no GPU is used
DRIVER_cu126 := CUDA 12.6, NVIDIA driver 525 or newer; GPUs up to Hopper
DRIVER_cu128 := CUDA 12.8, NVIDIA driver 525 or newer, 570 for Blackwell
DRIVER_cu130 := CUDA 13.0, NVIDIA driver 580 or newer
ifeq ($(filter $(TORCH),$(BUILDS)),)
$(error TORCH=$(TORCH) is none of: $(BUILDS))
endif
NO_TORCH = TORCH=keep: $(VENV) sees no torch. Give PYTHON=one that has it, after make clean, or VENV=its environment
VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)
FROM = $(if $(filter default,$(TORCH)),torch,--extra-index-url $(TORCH_INDEX)/$(TORCH) torch==$(VERSION)+$(TORCH))

PLACE := runs/quickstart
CLIPS := 512
LEARN := runs/learn
NEEDLE := runs/needle
WORKERS ?= 2

.PHONY: help setup again quickstart learn test soak lint bench clean
help:
	@echo "make quickstart   the main job, end to end, on a laptop: clips, shards, training on 2 ranks, samples, report"
	@echo "make learn        a model that sees and speaks, and one that finds needles, from scratch, in 20 minutes"
	@echo "make setup        packages into .venv; TORCH=cpu, cu126, cu128, cu130 or keep chooses torch: docs/gpu.md"
	@echo "make test         the tests, in two processes; WORKERS=0 in one"
	@echo "make lint         ruff and mypy"
	@echo "make bench        benchmarks, side by side with a peer"
	@echo "make soak         long tests, then half an hour of training under faults"

setup: $(READY)

ifneq ($(TORCH),$(BEFORE))
$(READY): again
endif

$(READY): pyproject.toml constraints.txt
ifeq ($(TORCH),keep)
	@test -d $(VENV) || $(PYTHON) -m venv --system-site-packages $(VENV)
	@$(BIN)/python -c "import torch" 2>/dev/null || { echo "$(NO_TORCH)"; exit 1; }
	@grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
	@$(BIN)/python -c "import torch; print(f'torch=={torch.__version__}')" >> $(VENV)/constraints.txt
else
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
endif
	@echo "installing packages into $(VENV) (about two minutes, once); torch: $(TORCH), $(DRIVER_$(TORCH))"
ifneq ($(TORCH),keep)
	@test "$(TORCH)" = "$(BEFORE)" || $(BIN)/pip uninstall -qq -y torch 2>/dev/null || true  # any build meets a bare pin
	@$(PIP) $(FROM)
endif
	@$(PIP) setuptools wheel
	@$(PIP) --no-build-isolation -e '.[dev]'
	@$(BIN)/python -c "import torch, ray, av, launcher"
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib > /dev/null || true  # on all cores, where pip takes one; some are templates
	@echo $(TORCH) > $(CHOSEN)
	@touch $(READY)

quickstart: $(READY)
	@echo "1/5  clips of moving shapes"
	@$(LONGREEL) data synth --out $(PLACE)-clips --clips $(CLIPS) --seed 0
	@echo "2/5  shards"
	@$(LONGREEL) prepare $(PLACE)-clips --out $(PLACE)-data
	@echo "3/5  training on 2 ranks under Ray, each with half of every sequence, ZeRO-2"
	@$(LONGREEL) train recipes/quickstart.yaml out=$(PLACE)
	@echo "4/5  samples"
	@$(LONGREEL) sample $(PLACE)
	@echo "5/5  report"
	@$(LONGREEL) report $(PLACE)
	@echo
	@echo "You have trained a video diffusion transformer with sequence parallelism. What was made:"
	@echo "  $(PLACE)/samples/       videos, and a contact sheet of them: open the PNG"
	@echo "  $(PLACE)/report.html    curves, samples, events: open it in a browser"
	@echo "  $(PLACE)/checkpoints/   where any number of ranks can go on from"
	@echo "  $(PLACE)-data/          the dataset, WebDataset shards with an index"
	@echo "What to try next:"
	@echo "  source $(BIN)/activate"
	@echo "  longreel sample $(PLACE) --prompt 'a green circle moving up' --seed 7"
	@echo "  longreel train recipes/quickstart.yaml out=$(PLACE) steps=2000   # goes on from the last checkpoint; kill it, start it again"
	@echo "  longreel prepare YOUR_VIDEOS --out runs/mine-data && longreel train recipes/quickstart.yaml data.dataset=runs/mine-data out=runs/mine"

# From scratch: a model that sees answers what colour, left or right, how many; another finds secrets at 8 x the length.
learn: $(READY)
	@echo "1/4  clips with questions, and others to be asked about"
	@$(LONGREEL) data questions --out $(LEARN)-clips --clips 3072 --seed 0
	@$(LONGREEL) data questions --out $(LEARN)-held-out --clips 100 --seed 1
	@$(LONGREEL) prepare $(LEARN)-clips --out $(LEARN)-data
	@$(LONGREEL) data chat $(LEARN)-clips/conversations.json --clips $(LEARN)-data --out $(LEARN)-chats
	@echo "2/4  training a model that sees and speaks"
	@$(LONGREEL) train recipes/video_lm.yaml out=$(LEARN) data.dataset=$(LEARN)-chats --no-ray
	@echo "3/4  questions about clips that it has not seen; and with their frames shuffled"
	@$(LONGREEL) eval $(LEARN) $(LEARN)-held-out/questions.json
	@$(LONGREEL) eval $(LEARN) $(LEARN)-held-out/questions.json --shuffle-frames
	@echo "4/4  needles in 32, 256, 1024, 2048 bytes, one after the other"
	@for n in 32 256 1024 2048; do $(LONGREEL) data needles --out $(NEEDLE)-$$n.jsonl --length $$n && \
		$(LONGREEL) data chat $(NEEDLE)-$$n.jsonl --out $(NEEDLE)-$$n || exit 1; done
	@$(LONGREEL) train recipes/needle.yaml out=$(NEEDLE) --no-ray
	@$(LONGREEL) needle $(NEEDLE) --lengths 256,1024,2048 --depths 5 --each 12

test: $(READY)
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

soak: $(READY)
	@$(BIN)/python -m pytest -m slow
	@$(BIN)/python -m tests.support.soak --minutes 30

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(READY)
	@$(BIN)/python -m benchmarks.train
	@$(BIN)/python -m benchmarks.attention
	@$(BIN)/python -m benchmarks.data
	@$(BIN)/python -m benchmarks.video_lm

clean:
	rm -rf $(VENV) runs build *.egg-info
