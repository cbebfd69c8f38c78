# `make quickstart` and `make test` each do all their own set-up, once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LONGREEL := $(BIN)/longreel
PIP := $(BIN)/pip install -qq --disable-pip-version-check --no-compile -c constraints.txt
PLACE := runs/quickstart
CLIPS := 512
LEARN := runs/learn
NEEDLE := runs/needle

.PHONY: help setup quickstart learn test soak lint bench clean
help:
	@echo "make quickstart   the main job, end to end, on a laptop: clips, shards, training on 2 ranks, samples, report"
	@echo "make learn        a model that sees and speaks, and one that finds needles, from scratch, in 20 minutes"
	@echo "make test         the tests"
	@echo "make lint         ruff and mypy"
	@echo "make bench        benchmarks, side by side with a peer"
	@echo "make soak         long tests, then half an hour of training under faults"

setup: $(READY)

# Pinned, because a bare `torch` pulls gigabytes of CUDA packages; on a GPU machine install your own build instead.
$(READY): pyproject.toml constraints.txt
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@echo "installing packages into $(VENV) (about two minutes, once)"
	@$(PIP) torch setuptools wheel
	@$(PIP) --no-build-isolation -e '.[dev]'
	@$(BIN)/python -c "import torch, ray, av, launcher"
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib > /dev/null || true  # on all cores, where pip takes one; some are templates
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
	@$(LONGREEL) data talks $(LEARN)-clips/conversations.json --clips $(LEARN)-data --out $(LEARN)-talks
	@echo "2/4  training a model that sees and speaks"
	@$(LONGREEL) train recipes/video_lm.yaml out=$(LEARN) data.dataset=$(LEARN)-talks --no-ray
	@echo "3/4  questions about clips that it has not seen; and with their frames shuffled"
	@$(LONGREEL) eval $(LEARN) $(LEARN)-held-out/questions.json
	@$(LONGREEL) eval $(LEARN) $(LEARN)-held-out/questions.json --shuffle-frames
	@echo "4/4  needles in 32, 256, 1024, 2048 bytes, one after the other"
	@for n in 32 256 1024 2048; do $(LONGREEL) data needles --out $(NEEDLE)-$$n.jsonl --length $$n && \
		$(LONGREEL) data talks $(NEEDLE)-$$n.jsonl --out $(NEEDLE)-$$n || exit 1; done
	@$(LONGREEL) train recipes/needle.yaml out=$(NEEDLE) --no-ray
	@$(LONGREEL) needle $(NEEDLE) --lengths 256,1024,2048 --depths 5 --each 12

test: $(READY)
	@$(BIN)/python -m pytest

soak: $(READY)
	@$(BIN)/python -m pytest -m slow
	@$(BIN)/python -m tests.soak --minutes 30

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
