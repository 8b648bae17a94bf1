# Two commands do all set-up on a fresh Debian machine: `make demo` and `make test`.
PYTHON ?= /usr/bin/python3
VENV := .venv
TITAN := .venv-titan
LOCKER := .venv-lock
BIN := $(VENV)/bin
# Tests mostly wait: for silence to be long enough, for Slurm to notice. So four run at a time, also
# on two cores; whoever is done with its share takes over from another.
PYTEST := $(BIN)/python -m pytest -n 4 --dist worksteal
APT := slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge \
       iproute2 nftables libfuse3-3 python3-venv shellcheck
# For the tests alone: stand-ins for NVML and libibverbs are compiled, ssh needs its server (an
# ordinary installation of it, which Debian starts), the report is looked at in a browser.
test soak: APT += gcc libc6-dev openssh-server chromium

.PHONY: demo test soak lint bench clean packages lock lock-titan
.DELETE_ON_ERROR:

# Without root the demo needs none of the packages: its nodes are processes then.
demo: $(if $(filter 0,$(shell id -u)),packages) $(VENV)/.done $(TITAN)/.done
	$(BIN)/superv demo --trainer-python "$(CURDIR)/$(TITAN)/bin/python"

test: packages $(VENV)/.done $(TITAN)/.done
	$(MAKE) --no-print-directory lint
	SUPERV_TITAN="$(CURDIR)/$(TITAN)/bin/python" $(PYTEST)

# Everything: also the slow ones, and lab tests on plain and on strict labs; and that a check which is
# broken in one place turns a test red (tests/mutants says how, and what no test noticed).
soak: packages $(VENV)/.done $(TITAN)/.done
	SUPERV_LAB=all SUPERV_TITAN="$(CURDIR)/$(TITAN)/bin/python" $(PYTEST) -m ""
	$(BIN)/python -m tests.mutants --survivors 900

lint: $(VENV)/.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: packages $(VENV)/.done $(TITAN)/.done
	SUPERV_TITAN="$(CURDIR)/$(TITAN)/bin/python" $(BIN)/python -m bench

# Debian's packages; nothing happens where they are there, and without root it is said what is missing.
packages:
	@missing=""; for p in $(APT); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q "ok installed" || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ]; then \
	    echo "installing Debian packages:$$missing"; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	  else echo "superv: missing Debian packages:$$missing; as root: apt-get install$$missing"; exit 2; fi; fi

# Exact versions with hashes: requirements/ holds what `make lock` wrote. setuptools is among them, so
# nothing is fetched to build superv itself.
$(VENV)/.done: requirements/dev.txt setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r $<
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e . --config-settings editable_mode=compat
	touch $@

# torch==2.13.0 is a CPU build where Debian 12's Python asks PyPI; 1.4 GB on disk. Which build an index
# gives differs, so these are versions without hashes.
$(TITAN)/.done: examples/torchtitan_lab/requirements.txt examples/torchtitan_lab/constraints.txt
	$(PYTHON) -m venv $(TITAN)
	$(TITAN)/bin/pip install -q --disable-pip-version-check -r $< -c examples/torchtitan_lab/constraints.txt
	touch $@

# The newest versions within setup.cfg's bounds, with the hashes of every file that the index has.
LOCK := CUSTOM_COMPILE_COMMAND="make lock" $(LOCKER)/bin/pip-compile -q --upgrade --generate-hashes \
        --allow-unsafe --all-build-deps --strip-extras --no-annotate --no-emit-options \
        --no-emit-index-url --no-emit-find-links --no-emit-trusted-host
lock:
	$(PYTHON) -m venv $(LOCKER)
	$(LOCKER)/bin/pip install -q --disable-pip-version-check pip-tools==7.6.2
	$(LOCK) -o requirements/runtime.txt setup.cfg
	$(LOCK) --extra dev -o requirements/dev.txt setup.cfg

# What the TorchTitan environment would be if it were made today.
lock-titan:
	rm -rf $(LOCKER)
	$(PYTHON) -m venv $(LOCKER)
	$(LOCKER)/bin/pip install -q --disable-pip-version-check -r examples/torchtitan_lab/requirements.txt
	(echo "# Written by make lock-titan."; $(LOCKER)/bin/pip freeze | sed 's/+cpu$$//') >examples/torchtitan_lab/constraints.txt

clean:
	rm -rf $(VENV) $(TITAN) $(LOCKER) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache bench/out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
