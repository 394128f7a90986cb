# Every target makes .venv by itself when it is missing or when the lock changed.
PYTHON := $(firstword $(foreach name,python3.12 python3.11 python3,$(shell command -v $(name) >/dev/null 2>&1 && \
	$(name) -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $(name))))
TORCH := $(shell sed -n 's/.*"\(torch==[^"]*\)".*/\1/p' pyproject.toml)
PIP := .venv/bin/python -m pip install --quiet --quiet --disable-pip-version-check --no-input
# The stamp is named after the torch pin and the lock's content, so a change of either installs anew and a mere touch does not.
INSTALLED := .venv/.installed-$(shell { echo '$(TORCH)'; cat requirements.lock; } | cksum | cut -d' ' -f1)
CUDA_ONLY := cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cccl nvidia-cuda-cupti nvidia-cuda-nvrtc \
	nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand nvidia-cusolver nvidia-cusparse nvidia-cusparselt-cu13 \
	nvidia-nccl-cu13 nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx triton

.PHONY: demo install test coverage readme end-to-end faults up check system-packages lock clean

demo: $(INSTALLED)
	.venv/bin/dankai demo

install: $(INSTALLED)

# Every command block of README.md, in a fresh clone; a minute or two.
readme: $(INSTALLED)
	.venv/bin/python -m tests.repository.readme_blocks --venv .venv

test: $(INSTALLED) system-packages
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

coverage: $(INSTALLED) system-packages
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=term

# Real servers, a drifted batch and what follows from it; minutes, so not a part of `make test`.
end-to-end: $(INSTALLED) system-packages
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -m operations

# Kills, a full disk, hanging networks, jumping clocks at each step of a retraining, on real servers; hours.
# `.venv/bin/python -m tests.faults.retraining_faults --only WORDS` runs some of the rows.
faults: $(INSTALLED) system-packages
	OMP_NUM_THREADS=1 .venv/bin/python -m tests.faults.retraining_faults

up: $(INSTALLED)
	.venv/bin/dankai up

# The tests start a PostgreSQL of their own and open the report in a real browser. Continuous integration installs
# both where it may; a laptop is left alone, and a failure here only means that those tests are skipped, with a word.
system-packages:
	@missing=; lacks() { for name; do command -v $$name >/dev/null && return 1; done; return 0; }; \
	if lacks initdb && ! ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then missing="$$missing postgresql"; fi; \
	if lacks chromium chromium-browser google-chrome google-chrome-stable; then missing="$$missing chromium"; fi; \
	if ! fc-list 2>/dev/null | grep -q CJK; then missing="$$missing fonts-noto-cjk"; fi; \
	if [ -z "$$missing" ]; then :; \
	elif [ "$$CI" = true ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing for the tests:$$missing"; timeout 120 apt-get -qq update >/dev/null 2>&1; \
		for package in $$missing; do DEBIAN_FRONTEND=noninteractive timeout 240 apt-get -qq install -y \
			--no-install-recommends $$package >/dev/null 2>&1 || \
			echo "$$package could not be installed: its tests are skipped"; done; \
	else \
		echo "Some tests are skipped: to run them, install your system's packages (Debian:$$missing)"; \
	fi

check: $(INSTALLED)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright
	.venv/bin/lint-imports
	.venv/bin/python -m pytest -q --no-header tests/repository/test_lock.py

# torch goes first and by its pin alone: its build differs from machine to machine, so a hash would break one of
# them. It brings setuptools, with which the one source distribution of the lock (pure Python) is built.
$(INSTALLED):
	@test -n "$(PYTHON)" || { echo "dankai needs Python 3.11 or 3.12 with venv on the PATH: install one and run make again" >&2; exit 1; }
	@echo "Installing into .venv (once; a few minutes)"
	@$(PYTHON) -m venv --clear .venv
	@$(PIP) $(TORCH)
	@$(PIP) --require-hashes --no-deps --no-build-isolation -r requirements.lock
	@$(PIP) --no-deps --no-build-isolation --editable .
	@.venv/bin/python -m pip check
	@touch $@

# Rewrites the lock from pyproject.toml (needs uv on the PATH; pins already in the lock are kept).
lock:
	uv pip compile pyproject.toml --extra all --extra dev --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-annotate --no-header --quiet \
		$(addprefix --no-emit-package ,$(CUDA_ONLY) torch dankai) -o requirements.lock

clean:
	rm -rf .venv .dankai .screenshots .coverage htmlcov .pytest_cache .ruff_cache .hypothesis
