# Two commands do all set-up on a fresh Debian machine: `make demo` and `make test`.
PYTHON ?= /usr/bin/python3
VENV := .venv
TITAN := .venv-titan
TITAN_0_2 := .venv-titan-0.2
TORCHX := .venv-torchx
TITANS := SUPERV_TITAN="$(CURDIR)/$(TITAN)/bin/python" SUPERV_TITAN_0_2="$(CURDIR)/$(TITAN_0_2)/bin/python" SUPERV_TORCHX="$(CURDIR)/$(TORCHX)/bin/python"
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

test: packages $(VENV)/.done $(TITAN)/.done $(TITAN_0_2)/.done $(TORCHX)/.done
	$(MAKE) --no-print-directory lint
	$(TITANS) $(PYTEST)

# Everything: also the slow ones, and lab tests on plain and on strict labs, on each release of Slurm;
# and that a check which is broken in one place turns a test red (tests/mutants says how, and what no
# test noticed).
soak: packages $(VENV)/.done $(TITAN)/.done $(TITAN_0_2)/.done $(TORCHX)/.done
	SUPERV_LAB=all SUPERV_SLURM=all $(TITANS) $(PYTEST) -m ""
	$(BIN)/python -m tests.mutants --sample 300 --survivors 130

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

# TorchTitan 0.3.0. Which build of torch an index gives differs, so these are versions without hashes,
# and what would be fetched is looked at first.
LAB := examples/torchtitan_lab
$(TITAN)/.done: $(LAB)/requirements.txt $(LAB)/constraints.txt
	$(PYTHON) -m venv $(TITAN)
	$(TITAN)/bin/python $(LAB)/look_first.py
	$(TITAN)/bin/pip install -q --disable-pip-version-check -r $< -c $(LAB)/constraints.txt
	touch $@

# TorchTitan 0.2.2 alone, 4.5 MB: torch and all else are those of the other environment.
$(TITAN_0_2)/.done: $(LAB)/requirements-0.2.txt $(TITAN)/.done
	rm -rf $(TITAN_0_2)
	$(PYTHON) -m venv --without-pip $(TITAN_0_2)
	@echo "making an environment with TorchTitan 0.2.2: 4.5 MB, some seconds; it shares torch"
	site=$$($(TITAN_0_2)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))") && \
	  $(TITAN)/bin/pip install -q --disable-pip-version-check --no-deps --target "$$site" -r $< && \
	  $(TITAN)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" >"$$site/shared.pth"
	touch $@

# TorchX by itself: it pins urllib3 below 1.27, which no trainer should have.
$(TORCHX)/.done: setup.cfg
	rm -rf $(TORCHX)
	$(PYTHON) -m venv $(TORCHX)
	@echo "making an environment with torchx: 3 MB to fetch, 42 MB on disk, some 10 seconds"
	$(TORCHX)/bin/pip install -q --disable-pip-version-check wheel "$$(sed -n '/^torchx =/{n;s/ //gp}' setup.cfg)"
	$(TORCHX)/bin/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e . --config-settings editable_mode=compat
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
	$(LOCKER)/bin/pip install -q --disable-pip-version-check -r $(LAB)/requirements.txt
	(echo "# Written by make lock-titan."; $(LOCKER)/bin/pip freeze | sed 's/+cpu$$//') >$(LAB)/constraints.txt

clean:
	rm -rf $(VENV) $(TITAN) $(TITAN_0_2) $(TORCHX) $(LOCKER) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache bench/out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
