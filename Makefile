# One virtual environment, one command for each purpose. `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SEED ?= 1
# With it, each process of a test run and each worker of Ray compiles the code again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo check format test test-quantization test-slow chaos histories histories-s3 bench bench-million bench-corpus image manifests clean

help: ## list the commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | expand -t 14

setup: $(INSTALLED) ## install the pinned packages into .venv; does nothing if nothing changed

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --build-constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup ## run three small jobs through the whole engine, into ./demo-output
	$(BIN)/python -m jobs.demo

check: setup ## check lint, format, types and import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## fix lint and format with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: setup ## run all tests but the slow ones, in three processes (many tests wait for Ray)
	@tests/install_tools.sh
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

test-slow: setup ## run the slow tests
	$(BIN)/python -m pytest -m slow --timeout 1800

QUANTIZATION := $(VENV)/quantization

$(QUANTIZATION)/.installed: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt --target $(QUANTIZATION) --upgrade torchao bitsandbytes
	@touch $@

test-quantization: $(QUANTIZATION)/.installed ## run the tests of quantized weights, with their libraries in a folder beside the environment
	PYTHONPATH=$(QUANTIZATION) $(BIN)/python -m pytest tests/jointdit/loading/test_quantization.py

chaos: setup ## inject faults into a job of 2,000 rows and account for every sample; SEED=n
	$(BIN)/python -m tests.chaos.storm --seed $(SEED) --rows 2000 --faults 300
	$(BIN)/python -m tests.chaos.storm --seed $(SEED) --rows 60 --faults 20 --deaths 0.3 --model tiny

histories: setup ## play 1,000 random histories of one output, with an account after every operation; SEED=n
	$(BIN)/python -m tests.chaos.histories --seed $(SEED) --count 1000 --jobs 2

histories-s3: setup ## play 100 histories on a real S3 server
	$(BIN)/python -m tests.chaos.histories --seed $(SEED) --count 100 --jobs 2 --s3

bench: setup ## run all benches and write jobs/tools/BENCH.md
	$(BIN)/jointdit bench --all --write
	$(BIN)/python -m jobs.tools.throughput --write

bench-million: setup ## measure a resume with a million committed shards; needs 10 GB and some minutes
	$(BIN)/jointdit bench resume-million --write

bench-corpus: setup ## measure what follows the commits, the driver and near-duplicates at corpus size; needs 5 GB and an hour
	$(BIN)/jointdit bench dispatch-corpus --write
	$(BIN)/jointdit bench publish-corpus --write
	$(BIN)/jointdit bench near-duplicate-corpus --write

VERSION ?= $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
CUDA ?=
TORCH_INDEX ?=
PYTHON_DIGEST ?=
IMAGE_OPTIONS = --build-arg CUDA=$(CUDA) --build-arg TORCH_INDEX=$(TORCH_INDEX) --build-arg PYTHON_DIGEST=$(PYTHON_DIGEST)

image: ## build the container image; build arguments as CUDA=cu130
	docker build $(IMAGE_OPTIONS) --file infra/docker/Dockerfile --tag jointdit-engine:$(VERSION) .

SUBMIT = $(BIN)/jointdit submit infra/kuberay/job.yaml --kube --dry-run
IN_GCS = --set 'input.uri=gs://corpus/prompts/*.parquet' --set output.uri=gs://datasets/nightly-indoor

manifests: setup ## write the examples in infra/kuberay
	$(SUBMIT) --store s3 > infra/kuberay/s3.yaml
	$(SUBMIT) --store gcs $(IN_GCS) > infra/kuberay/gcs.yaml
	$(SUBMIT) --store minio > infra/kuberay/minio.yaml
	$(SUBMIT) --store s3 --schedule '0 1 * * *' > infra/kuberay/nightly.yaml

clean: ## remove what the commands above made, including the environment
	rm -rf $(VENV) demo-output .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
