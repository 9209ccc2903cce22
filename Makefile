# Needs python3 (3.11 or later) and pip; everything goes into .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow test-gpu check fix docs bench bench-gpu bench-algorithms size clean

demo: .venv/ready        ## the main job: train, show, export
	$(BIN)/lgrpo-lite recipe tiny-math

test: .venv/ready        ## all tests that need no GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-slow: .venv/ready   ## every named algorithm trains
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist load -m slow

test-gpu: .venv/ready
	$(BIN)/python -m pytest -m gpu

check: .venv/ready       ## format, lint, types, layers, generated docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo
	$(BIN)/python docs/generate.py --check

fix: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: .venv/ready        ## docs/algorithms.md, cli.md and performance.md from the code and stored benches
	$(BIN)/python docs/generate.py

bench: .venv/ready       ## the head, the update and the step beside other trainers; what each algorithm costs. An hour on two cores
	$(BIN)/pip install -q -c constraints-cpu.txt -e ".[bench]"
	$(BIN)/python bench/loss.py
	OMP_NUM_THREADS=1 $(BIN)/python bench/step.py
	OMP_NUM_THREADS=1 $(BIN)/python bench/named.py

bench-gpu:               ## the same on a GPU and what fits into 24 GiB; no network, the Python that has torch
	PYTHONPATH=. $(PYTHON) bench/loss.py
	PYTHONPATH=. $(PYTHON) bench/step.py
	PYTHONPATH=. $(PYTHON) bench/fit.py

bench-algorithms: .venv/ready  ## every algorithm with the same budget, 3 seeds; an hour and a half
	OMP_NUM_THREADS=1 $(BIN)/python bench/algorithms.py

size:                    ## lines per file
	@find lgrpo_lite -name '*.py' | xargs wc -l | sort -n

clean:
	rm -rf .venv build dist

.venv/ready: pyproject.toml constraints-cpu.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints-cpu.txt torch
	$(BIN)/pip install -q -c constraints-cpu.txt -e ".[train,dev]"
	touch $@
