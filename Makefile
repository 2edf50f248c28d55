# Each target works as the first command in a fresh clone, because it makes what it needs.

PYTEST_ARGS =
BENCH_ARGS =
VENV = .venv/.made-from-the-lock
# Most tests wait rather than compute.  A file's tests stay together, because they share fixtures.
PARALLEL = -n 2 --dist loadfile

.PHONY: help demo run quick test matrix bench hostile lint lock deb package-test clean

help:
	@echo "make demo   play four conversations through proxyshim and an embedded mail server"
	@echo "make run    keep the same pair running until Ctrl-C, so that you can try it"
	@echo "make quick  lint, and the unit and property tests: no root, no Debian packages"
	@echo "make test   all tests (PYTEST_ARGS='-k v2' runs some of them)"
	@echo "make matrix test each mail server of docs/how-to/conveyance.md with each conveyance"
	@echo "make bench  compare proxyshim with nginx and HAProxy (BENCH_ARGS=--quick, --help)"
	@echo "make hostile  what one hostile client can cost: time, memory, and a stall for others"
	@echo "make deb    build the Debian package for this release in dist/"
	@echo "make package-test  build it for Debian 12 and 13, and test it there under systemd"
	@echo "make lint   ruff, mypy, and systemd's check of the unit"
	@echo "make lock   pin the newest versions in requirements/*.txt"
	@echo "make clean  remove everything that the other targets made"

demo: $(VENV)
	@.venv/bin/proxyshim demo

run: $(VENV)
	@.venv/bin/proxyshim demo --serve

quick: lint
	@.venv/bin/pytest $(PARALLEL) tests/unit tests/property $(PYTEST_ARGS)

test: $(VENV)
	@tools/install-test-packages
	@.venv/bin/pytest $(PARALLEL) $(PYTEST_ARGS)

# The servers are not installed but unpacked, because their packages exclude each other.
matrix: $(VENV)
	@tools/install-test-packages
	@command -v node >/dev/null && command -v npm >/dev/null || tools/apt-install nodejs npm
	@.venv/bin/pytest -n 2 --dist loadgroup tests/matrix $(PYTEST_ARGS)

bench: $(VENV)
	@tools/apt-install $$(sed -E '/^#|^$$/d; s/ .*//' bench/debian-packages.txt) || \
	    echo "Continuing without them; the parts that need them are left out." >&2
	@.venv/bin/python -m bench $(BENCH_ARGS)

hostile: $(VENV)
	@.venv/bin/python -m bench.hostile

lint: $(VENV)
	@.venv/bin/ruff check --quiet --output-format=concise
	@.venv/bin/ruff format --check --quiet || \
	    { echo "Not formatted: run .venv/bin/ruff format" >&2; exit 1; }
	@.venv/bin/mypy --no-error-summary
	@tools/verify-unit systemd/proxyshim.service systemd/proxyshim.socket systemd/proxyshim-routes.service
	@echo "lint: passed"

deb:
	@tools/make-deb

# The first run makes the systems, which takes minutes in one test.
package-test: $(VENV)
	@tools/install-test-packages
	@tools/apt-install debootstrap
	@.venv/bin/pytest -n 2 --dist loadscope --timeout 1500 -o faulthandler_timeout=1800 \
	    tests/packages $(PYTEST_ARGS)

lock:
	@tools/lock

clean:
	@rm -rf .venv .cache dist
	@find proxyshim tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

# Rebuilt from scratch when the lock changes, so that no unlocked package stays in it.
$(VENV): requirements/dev.txt
	@tools/make-venv
	@touch $@
