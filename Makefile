# Plateau's commands. `make help` lists them; README.md says what they print.

# The environment. An existing one may be named too: it is used as it is, and a torch found in it stays.
VENV ?= .venv
# The interpreter that a new environment is made from: the first one that is new enough.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11 python; do \
	$$name -c "$(NEW_ENOUGH)" >/dev/null 2>&1 && { echo $$name; break; }; done)
# The torch to install. Empty: the torch that PYTHON has already, else TORCH_DEFAULT, as a CPU build if there is one.
TORCH_SPEC ?=
# More words for pip while it installs torch, such as --index-url.
TORCH_ARGS ?=
# More words for the program that a target runs: make run ARGS="--subjects all", make test ARGS="-m slow".
ARGS ?=

TORCH_DEFAULT := torch==2.13.0
TORCH_MINIMUM := 2, 6
NEW_ENOUGH := import sys; sys.exit(None if sys.version_info >= (3, 11) else 'too old')
HAS_TORCH := import torch; assert tuple(map(int, torch.__version__.split('.')[:2])) >= ($(TORCH_MINIMUM))
SITE_OF_TORCH := import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help quick run text run-text test lint types check format docs figures evidence evidence-text pocket slurm-demo

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'
	@echo
	@echo '  ARGS="..."       more flags for the program:  make run ARGS="--dry-run"'
	@echo '  VENV=FOLDER      the environment to make or to use (now $(VENV)); a torch in it stays'
	@echo '  PYTHON=NAME      the interpreter to make it from; if that one has torch, its torch is used'
	@echo '  TORCH_SPEC=...   install this torch instead (default $(TORCH_DEFAULT), a CPU build); TORCH_ARGS=... for pip'

quick: $(VENV)/.plateau-run ## a first look: DeLoRA at four learning rates on one subject; `make run` goes on from there
	$(BIN)/python sweeps/lr_robustness.py --method delora --subjects rocket --multipliers 0.25 1 4 16 $(ARGS)

run: $(VENV)/.plateau-run ## the main job: DeLoRA over learning rates on the pocket pipeline, minutes on a CPU
	$(BIN)/python sweeps/lr_robustness.py --method delora $(ARGS)

text: $(VENV)/.plateau-run ## fetch what the text task needs: a pretrained encoder (84 MB) and rated sentences (2 MB)
	$(BIN)/python -m training.tasks.fetch_text

run-text: text ## the same job on text: DeLoRA over learning rates on a pretrained encoder, minutes on a CPU
	$(BIN)/python sweeps/lr_robustness.py --task text --method delora $(ARGS)

test: $(VENV)/.plateau-test ## the default tests, one process with one thread a core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal --durations 25 $(ARGS)

lint: $(VENV)/.plateau-test ## style and format
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

types: $(VENV)/.plateau-test ## static types
	$(BIN)/python -m mypy

check: lint types test ## what CI runs: lint, types, tests

format: $(VENV)/.plateau-test ## put style and format right
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

docs: $(VENV)/.plateau-docs ## the documentation as a site, build/docs/index.html; a warning is an error
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -c docs -d build/doctrees . build/docs

# docs/results: every driver on the pocket, in one sweep, so that what several questions share is trained once. The order, and
# how many subjects each question has, are docs/evidence_plan.md's.
EVIDENCE = $(BIN)/python sweeps/$(1).py --sweep evidence --num-prompts 12 --num-images 1 --docs docs/results/$(2) $(3) $(ARGS)
FOUR := --method lora dora delora etherplus
EIGHT_RATES := --multipliers 0.25 0.5 1 2 4 8 16 32
LOW_RATES := --multipliers 0.0625 0.125 $(wordlist 2,9,$(EIGHT_RATES))
FOUR_RATES := --multipliers 0.25 1 4 16
LAST_LOOK := backpack bear camera cat cup donut panda penguin rabbit snowman sunflower tulip turtle
LONG := --steps 2600
evidence: $(VENV)/.plateau-run ## docs/results: every driver on the pocket, hours on two cores; goes on where it stopped
	$(call EVIDENCE,lr_robustness,lr_robustness,--method lora dora dora-fixed delora etherplus ether oft nblora singlora \
		$(EIGHT_RATES) --subjects 40)
	$(call EVIDENCE,prolonged_training,prolonged_training,$(FOUR) nblora singlora $(LONG) --subjects 40)
	$(call EVIDENCE,dora_magnitude,dora_magnitude,$(EIGHT_RATES) --subjects 40)
	$(call EVIDENCE,design_ablation,design_ablation,$(FOUR_RATES) --subjects 40)
	$(call EVIDENCE,best_of_grid,best_of_grid,--choosing-subjects 12 --subjects 40)
	$(call EVIDENCE,lr_robustness,lr_robustness-seeds,$(FOUR) $(FOUR_RATES) --subjects 16 --seeds 0 1 2)
	$(call EVIDENCE,boundary_and_angle,boundary_and_angle,$(EIGHT_RATES) --subjects 24)
	$(call EVIDENCE,lr_robustness,lr_robustness-low,$(FOUR) nblora $(LOW_RATES) --subjects 12)
	$(call EVIDENCE,setting_robustness,setting_robustness-lambda,--method delora --boundaries 1 4 16 64 256 \
		$(EIGHT_RATES) --weight-decays --instance-images --prior-weights --subjects 12 --spectra)
	$(call EVIDENCE,rank_robustness,rank_robustness,$(FOUR_RATES) --subjects 12 --spectra)
	$(call EVIDENCE,prolonged_training,prolonged_training-rates,--method lora dora delora etherplus nblora $(LONG) \
		--multipliers 0.25 1 4 --subjects 12)
	$(call EVIDENCE,start_robustness,start_robustness,--subjects 12)
	$(call EVIDENCE,setting_robustness,setting_robustness,--subjects 12)
	$(call EVIDENCE,weight_norms,weight_norms,$(FOUR) --subjects 16)
	$(call EVIDENCE,lr_robustness,lr_robustness-last-look,--method lora dora delora etherplus nblora $(FOUR_RATES) \
		--subjects $(LAST_LOOK))
	$(MAKE) figures

# The same on text, in the order of docs/text.md.
EVIDENCE_TEXT = $(BIN)/python sweeps/$(1).py --task text --sweep evidence-text --docs docs/results/text/$(1) $(2) $(ARGS)
EIGHT := --method lora dora dora-fixed delora etherplus oft nblora full
evidence-text: text ## docs/results/text: the same questions on text, hours on two cores; goes on where it stopped
	$(call EVIDENCE_TEXT,lr_robustness,$(EIGHT) $(EIGHT_RATES) --subjects 16)
	$(call EVIDENCE_TEXT,prolonged_training,$(FOUR) nblora --steps 480 --subjects 8)
	$(call EVIDENCE_TEXT,rank_robustness,$(FOUR_RATES) --subjects 8)

# PYTHON=... uses that interpreter as it is; it needs no torch: pandas, pyarrow, matplotlib, seaborn, scipy and duckdb are enough.
DRAWN_BY := $(if $(filter environment command,$(word 1,$(origin PYTHON))),given,)
figures: $(if $(DRAWN_BY),,$(VENV)/.plateau-run) ## draw docs/results again from its data (PYTHON=NAME: by that one, torch or not)
	$(if $(DRAWN_BY),$(PYTHON),$(BIN)/python) -m figures all --results docs/results --out docs/results --format png \
		--claims docs/claims.toml docs/findings.toml --pages README.md docs/results/README.md $(ARGS)

# The whole way through a cluster, as root: docs/cluster.md walks through it. The cluster goes down however it ends.
DEMO_FOLDER ?= /var/lib/plateau-slurm
DEMO_GRID = $(BIN)/python sweeps/lr_robustness.py --method delora --multipliers 0.5 1 2 4 8 16 --subjects 3 \
	--steps 60 --num-prompts 2 --num-images 1 --sweep slurm-demo --cluster slurm $(ARGS)

slurm-demo: $(VENV)/.plateau-run ## a SLURM of one node on this machine, a small grid on it, its figure (needs root)
	@set -ex; \
	$(BIN)/python -m tools.slurm_node up --install --folder $(DEMO_FOLDER); \
	trap '$(BIN)/python -m tools.slurm_node down --folder $(DEMO_FOLDER)' EXIT; \
	export SLURM_CONF=$(DEMO_FOLDER)/slurm.conf; \
	$(DEMO_GRID); \
	$(BIN)/python -m slurm.status runs/slurm-demo --wait; \
	$(DEMO_GRID)

pocket: $(VENV)/.plateau-run ## remake the pocket pipeline from its picture packages (needs npm, hours)
	$(BIN)/python -m tools.pocket.build $(ARGS)

# Setting up: environment, torch, everything else. The stamps make the second call instant and the broken one repeat.

$(VENV)/.plateau-run: $(VENV)/.plateau-torch pyproject.toml constraints.txt
	$(PIP) --constraint constraints.txt --editable '.[train]'
	@touch $@

$(VENV)/.plateau-test: $(VENV)/.plateau-torch pyproject.toml constraints.txt
	$(PIP) --constraint constraints.txt --editable '.[test]'
	@touch $(VENV)/.plateau-run $@

$(VENV)/.plateau-docs: $(VENV)/.plateau-torch pyproject.toml constraints.txt
	$(PIP) --constraint constraints.txt --editable '.[train,docs]'
	@touch $(VENV)/.plateau-run $@

$(VENV)/.plateau-torch: | $(VENV)/.plateau-venv
	@if $(BIN)/python -c "$(HAS_TORCH)" 2>/dev/null; then \
		echo "Keeping the torch in $(VENV)."; \
	elif [ -n "$(TORCH_SPEC)" ]; then \
		$(PIP) $(TORCH_ARGS) "$(TORCH_SPEC)"; \
	elif [ -z "$(TORCH_ARGS)" ] && "$(PYTHON)" -c "$(HAS_TORCH)" 2>/dev/null; then \
		echo "Using the torch of $(PYTHON) (TORCH_SPEC=$(TORCH_DEFAULT) installs one of its own)."; \
		"$(PYTHON)" -c "$(SITE_OF_TORCH)" > "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch_of_python.pth"; \
		$(BIN)/python -c "$(HAS_TORCH)"; \
	elif $(PIP) $(TORCH_ARGS) "$(TORCH_DEFAULT)+cpu" 2>/dev/null; then \
		echo "Installed a CPU build of torch."; \
	else \
		[ "$$(uname -sm)" != "Linux x86_64" ] || { \
			echo "No CPU build of torch in pip's indexes: taking the ordinary build, which brings several GB of CUDA."; \
			echo "If you have the address of an index of CPU builds: make run TORCH_ARGS='--index-url ADDRESS'."; }; \
		$(PIP) $(TORCH_ARGS) "$(TORCH_DEFAULT)"; \
	fi
	@touch $@

$(VENV)/.plateau-venv:
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		[ -n "$(PYTHON)" ] || { echo "Plateau needs Python 3.11 or newer, and none is on the PATH (on Debian: apt install python3 python3-venv). Another place: make PYTHON=/path/to/python3." >&2; exit 2; }; \
		"$(PYTHON)" -c "$(NEW_ENOUGH)" || { echo "Plateau needs Python 3.11 or newer; $(PYTHON) is not." >&2; exit 2; }; \
		"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) cannot make a virtual environment: its venv or ensurepip is missing (on Debian: apt install python3-venv)." >&2; exit 2; }; \
		echo "Making $(VENV) with $(PYTHON)."; \
		"$(PYTHON)" -m venv "$(VENV)"; \
	fi
	@$(BIN)/python -c "$(NEW_ENOUGH)" || { echo "Plateau needs Python 3.11 or newer; the one in $(VENV) is older." >&2; exit 2; }
	@touch $@
