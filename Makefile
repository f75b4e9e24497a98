# `make help` lists the targets. Every target sets the project up first, once.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
RUNS ?= runs
STUDY ?= demo
CLUSTER ?= slurm
PORT ?= 5000
# Tests share the cores among processes; a process that also threads would be slower.
TEST_PROCESSES ?= auto

.DEFAULT_GOAL := help
.PHONY: help setup demo submit test test-cluster lint ui report bench

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

setup: $(INSTALLED) ## install the project and its tools into .venv (once; about 5 GB)

$(INSTALLED): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name it: make setup PYTHON=/path/to/python3.12"; exit 1; }
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "A virtual environment could not be made. On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(RUN) -m pip install --disable-pip-version-check --quiet --editable '.[dev]'
	@touch $@

demo: $(INSTALLED) ## plain training, KD and KD with GDA on real digits, five seeds each, then the table
	@$(RUN) launch.py sweep=demo runs=$(RUNS); status=$$?; \
		$(RUN) -m gda.report demo --runs $(RUNS) && exit $$status

# Detached, so that it survives the ssh session; shown until its jobs are in the queue.
submit: $(INSTALLED) ## submit a sweep to SLURM: make submit SWEEP=main_table ARGS="cluster.partition=gpu"
	@test -n "$(SWEEP)" || { echo 'Name the sweep: make submit SWEEP=main_table ARGS="cluster.partition=gpu"'; exit 2; }
	@mkdir -p $(RUNS)/submissions; log=$(RUNS)/submissions/$(SWEEP)_$$(date +%Y-%m-%d_%H-%M-%S).log; : > $$log; \
		echo "Output: $$log (Ctrl-C ends this display only)"; \
		setsid nohup $(RUN) launch.py cluster=$(CLUSTER) sweep=$(SWEEP) runs=$(RUNS) $(ARGS) >> $$log 2>&1 < /dev/null & \
		pid=$$!; tail -n +1 -f --pid=$$pid $$log | sed '/^Status: /q'; \
		for second in 1 2 3 4 5; do kill -0 $$pid 2> /dev/null || break; sleep 1; done; \
		if kill -0 $$pid 2> /dev/null; then echo "It goes on in the background, as process $$pid: tail -f $$log"; \
		else wait $$pid; fi

test: $(INSTALLED) ## run all tests but those of test-cluster
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(TEST_PROCESSES) --dist worksteal -m "not cluster"

test-cluster: $(INSTALLED) ## sweeps, several processes, and a real SLURM (root on Debian; installs it)
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(TEST_PROCESSES) --dist worksteal -m cluster tests/e2e
	@OMP_NUM_THREADS=1 $(RUN) -m pytest tests/cluster -rs

lint: $(INSTALLED) ## ruff and the type checker
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy

ui: $(INSTALLED) ## open the MLflow UI over all runs (PORT=5000)
	@test -e $(RUNS)/mlflow.db || { echo "There are no runs in $(RUNS) yet: make demo"; exit 1; }
	@echo "MLflow UI: http://127.0.0.1:$(PORT) (Ctrl-C stops it)"
	@MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(VENV)/bin/mlflow server \
		--backend-store-uri sqlite:///$(abspath $(RUNS))/mlflow.db --host 127.0.0.1 --port $(PORT) --workers 1

report: $(INSTALLED) ## print and write the table of a study (STUDY=demo)
	@$(RUN) -m gda.report $(STUDY) --runs $(RUNS)

bench: $(INSTALLED) ## images/s of a training step by part, and the cost of the Sinkhorn term
	@$(RUN) -m gda.bench
