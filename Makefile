# The same targets locally and in CI. Everything is installed into .venv; nothing else is assumed but Python.
PYTHON ?= python3
BIN := .venv/bin
HFMEGA := $(BIN)/hfmega
DIGITS := --dataset digits --image-size 8
BRANCH := $(HFMEGA) train resnet8_cifar --init runs/demo/trunk $(DIGITS) --epochs 10 --lr 0.03 --batch-size 32 --quiet
BRANCHES := $(foreach number,1 2 3 4 5 6,runs/demo/branch-$(number))

# Checkpoints that are trained already: folders, or beginnings of Hub ids, separated by spaces. What is missing is trained.
SOURCES ?=
DATASET ?= uoft-cs/cifar10
GIVEN := --dataset $(DATASET) $(addprefix --sources ,$(SOURCES))
SMALL := $(GIVEN) --epochs 3 --population 10 --generations 5 --fitness-images 2000 --fine-tune-epochs 1 -o runs/small

.PHONY: demo demo-better verdict scale test test-all test-rest fresh-coverage lint reproduce reproduce-small families last-mile quality bench bench-gpu wheel clean

demo: .venv/installed  ## merge six branches of a trunk, each of which saw other images of scikit-learn's digits
	rm -rf runs/demo
	$(HFMEGA) train resnet8_cifar $(DIGITS) --batch-size 64 --train-split 'train[:200]' --epochs 20 --seed 1 -o runs/demo/trunk
	$(BRANCH) --train-split 'train[200:300]' --seed 11 -o runs/demo/branch-1
	$(BRANCH) --train-split 'train[300:400]' --seed 12 -o runs/demo/branch-2
	$(BRANCH) --train-split 'train[400:500]' --seed 13 -o runs/demo/branch-3
	$(BRANCH) --train-split 'train[500:600]' --seed 14 -o runs/demo/branch-4
	$(BRANCH) --train-split 'train[600:700]' --seed 15 -o runs/demo/branch-5
	$(BRANCH) --train-split 'train[700:800]' --seed 16 -o runs/demo/branch-6
	$(HFMEGA) merge $(BRANCHES) --dataset digits --fitness-split 'train[800:900]+train[1197:]' \
	    --calibration-split 'train[:800]' --test-split 'train[900:1197]+test' --tree flat \
	    --population 12 --generations 5 -o runs/demo/merged --json > runs/demo/merged.json
	@echo
	@echo "Six branches, no image in common, one network of the same size. Three commands to try next:"
	@echo "  $(HFMEGA) verify runs/demo/merged"
	@echo "  $(HFMEGA) inspect runs/demo/branch-1 runs/demo/branch-2 --dataset digits --fitness-split 'train[800:900]'"
	@echo "  $(HFMEGA) update-bn runs/demo/branch-1 --dataset digits --test-split 'train[900:1197]+test' -o runs/demo/updated"

demo-better: demo  ## the demo, and a failure unless its merge is shown to be better than each of its sources
	$(BIN)/python -c "import json; found = json.load(open('runs/demo/merged.json')); assert found['verdict'] == 'better', found"

TRACE ?=
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python $(if $(TRACE),-m coverage run )-m pytest --numprocesses auto --durations 10

test: lint  ## lint, types and every claim, a process for each core: minutes
	$(PYTEST) -m "not system and not fuzz"

test-all: TRACE = yes
test-all: fresh-coverage test test-rest  ## the same, and kills, processes, memory, large networks, fuzzing; a floor under the coverage

test-rest: TRACE = yes
test-rest: .venv/installed  ## what test-all adds; needs the traces of `make test TRACE=yes`
	$(PYTEST) -m system
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --hypothesis-profile fuzz tests/fuzz
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

fresh-coverage: .venv/installed
	$(BIN)/python -m coverage erase

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

reproduce: .venv/installed  ## the paper's tables and figure in full: a GPU's work (the hours: hfmega reproduce table1 --dry-run)
	$(HFMEGA) reproduce table1 $(GIVEN) -o runs/full
	$(HFMEGA) reproduce figure2 $(GIVEN) -o runs/full
	$(HFMEGA) reproduce table2 $(GIVEN) -o runs/full

reproduce-small: .venv/installed  ## the same pipeline with small networks and searches; rewrites cards/reproduction
	$(HFMEGA) reproduce table1 --arch resnet8_cifar --arch resnet20_cifar --seeds 44,45 $(SMALL)
	$(HFMEGA) reproduce figure2 --arch resnet8_cifar --arch resnet20_cifar --seeds 44,45 $(SMALL)
	$(HFMEGA) reproduce table2 --arch resnet8_cifar $(SMALL)
	rm -rf cards/reproduction
	cp -R runs/small/results cards/reproduction

families: .venv/installed  ## train families of checkpoints to the end: hours; rewrites cards/families (SOURCES: with effnet-trunk)
	$(BIN)/python benchmarks/families.py $(GIVEN) -o runs/families
	rm -rf cards/families
	cp -R runs/families/results cards/families

last-mile: .venv/installed  ## one choice of the last mile after the other; rewrites cards/last-mile (SOURCES: the families)
	$(BIN)/python benchmarks/last_mile.py $(GIVEN) -o runs/last-mile
	rm -rf cards/last-mile
	cp -R runs/last-mile/results cards/last-mile

quality: .venv/installed  ## every method on families of checkpoints; rewrites cards/quality (SOURCES: folders, separated by spaces)
	$(BIN)/python benchmarks/quality.py --dataset $(DATASET) $(if $(SOURCES),--sources $(SOURCES)) -o runs/quality
	rm -rf cards/quality
	cp -R runs/quality/results cards/quality

bench: .venv/installed  ## what a search costs, against plain PyTorch and PyGAD; rewrites cards/speed
	$(BIN)/python benchmarks/speed.py --dataset $(DATASET) $(if $(SOURCES),--sources $(SOURCES)) -o runs/bench
	cp -R runs/bench/results/. cards/speed

verdict: .venv/installed  ## where the seconds of one merge go; writes cards/speed/verdict.md (BEFORE: another checkout, to compare)
	$(BIN)/python benchmarks/verdict.py --dataset $(DATASET) $(if $(SOURCES),--sources $(SOURCES)) $(if $(BEFORE),--before $(BEFORE)) -o runs/bench
	cp runs/bench/results/verdict.* cards/speed

scale: .venv/installed  ## what grows with sources, networks and sets; writes cards/speed/scale.md (SOURCES: resnet8-s44 to -s51, effnet-*)
	$(BIN)/python benchmarks/scale.py --dataset $(DATASET) --sources $(SOURCES) -o runs/bench
	cp runs/bench/results/scale.* cards/speed

bench-gpu: .venv/installed  ## on a machine with a GPU: the tests, then `make bench` on it; writes cards/speed-gpu
	$(BIN)/python -c "import sys, torch; sys.exit(None if torch.cuda.is_available() else 'bench-gpu: torch sees no GPU here')"
	$(PYTEST) -m "not fuzz"
	$(BIN)/python benchmarks/speed.py --dataset $(DATASET) $(if $(SOURCES),--sources $(SOURCES)) -o runs/bench-gpu
	rm -rf cards/speed-gpu
	cp -R runs/bench-gpu/results cards/speed-gpu

wheel:  ## dist/hfmega-*.whl, with any Python that has pip
	$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf .venv dist runs .coverage* .mypy_cache .pytest_cache .ruff_cache

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
