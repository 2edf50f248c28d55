# Each target works as the first command in a fresh clone: what it needs, it makes.

PYTEST_ARGS =
BENCH_ARGS =
VENV = .venv/.made-from-the-lock

.PHONY: help demo run test bench lint lock clean

help:
	@echo "make demo   play four conversations through proxyshim and an embedded mail server"
	@echo "make run    keep the same pair running, to play with, until Ctrl-C"
	@echo "make test   all tests (PYTEST_ARGS='-k v2' for some of them)"
	@echo "make bench  measure proxyshim beside nginx and HAProxy (BENCH_ARGS=--quick, --help)"
	@echo "make lint   ruff, mypy, and systemd's check of the unit"
	@echo "make lock   pin the newest versions in requirements/*.txt"
	@echo "make clean  remove what the others made"

demo: $(VENV)
	@.venv/bin/proxyshim demo

run: $(VENV)
	@.venv/bin/proxyshim demo --serve

test: $(VENV)
	@tools/install-test-packages
	@.venv/bin/pytest $(PYTEST_ARGS)

bench: $(VENV)
	@tools/apt-install $$(sed -E '/^#|^$$/d; s/ .*//' bench/debian-packages.txt) || \
	    echo "Going on without: what needs them is left out." >&2
	@.venv/bin/python -m bench $(BENCH_ARGS)

lint: $(VENV)
	@.venv/bin/ruff check --quiet --output-format=concise
	@.venv/bin/ruff format --check --quiet || \
	    { echo "Not formatted: run .venv/bin/ruff format" >&2; exit 1; }
	@.venv/bin/mypy --no-error-summary
	@tools/verify-unit systemd/proxyshim.service systemd/proxyshim.socket
	@echo "lint: passed"

lock:
	@tools/lock

clean:
	@rm -rf .venv .cache dist
	@find proxyshim tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

# Rebuilt from nothing when the lock changes, so that nothing unlocked stays in it.
$(VENV): requirements/dev.txt
	@tools/make-venv
	@touch $@
