# make up    a controller, and its first defender in front of this host's Docker Engine, ready to use
# make down  stop what make up started
# make test  everything: linters, and all tests on a real Engine (root; installs what it needs on Debian, Ubuntu)
# make bench    the defender beside other proxies; BENCH="--quick" and so on, see docs/explanation/performance.md
# make bench-fleet  a controller and thousands of simulated defenders; BENCH="--quick" and so on, see
#            docs/explanation/fleet-performance.md
# make profile  flame graphs of the defender under load; PROFILE="--native DIRECTORY" and so on
# make soak  hours of mixed load, then a leak check (root); SOAK="--minutes 2" and so on, see docs/explanation/soak.md
#
# Variables of make up: FLEET_STATE ENGINE DEFENDER_PORT CONTROLLER_PORT CHANNEL_PORT LISTEN POLICY DEFENDER_NAME
# MODE; see docs/reference/cli.md.

PYTHON ?= python3
# For make test: arguments of pytest, such as PYTEST="tests/defender -k listener", and how many processes run the
# tests: a file is always one process's.
PYTEST ?= tests
WORKERS ?= auto

# A defender that the caller's shell is set up for is none of the tests' business. Root's PATH after a plain su
# lacks the system's tools.
UNSET = env -u FLEET_STATE -u DOCKER_HOST -u DOCKER_TLS_VERIFY -u DOCKER_CERT_PATH -u DOCKER_CONFIG \
	-u DOCKER_CONTEXT -u DOCKER_API_VERSION -u DOCKER_BUILDKIT PATH="$$PATH:/usr/local/sbin:/usr/sbin:/sbin"

.PHONY: up down test lint bench bench-fleet soak profile docs python
.NOTPARALLEL:

up: python
	@$(PYTHON) -m deploy.up

down: python
	@$(PYTHON) -m deploy.down

test: python
	@$(PYTHON) -m deploy.prepare --extra test test
	@# One run tells everything: the tests run whatever the linters found.
	@linted=0; $(MAKE) --no-print-directory linted || linted=$$?; \
	$(UNSET) .venv/bin/python -m pytest -n $(WORKERS) --maxprocesses=4 --dist loadfile --durations 20 $(PYTEST) && exit $$linted

lint: python
	@$(PYTHON) -m deploy.prepare --extra test lint
	@$(MAKE) --no-print-directory linted

.PHONY: linted
linted:
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy --strict --allow-untyped-calls defender controller tests deploy

bench: python
	@$(PYTHON) -m deploy.prepare --extra test --extra bench bench
	@$(UNSET) .venv/bin/python -m tests.bench.run $(BENCH)

bench-fleet: python
	@$(PYTHON) -m deploy.prepare --extra test bench-fleet
	@$(UNSET) .venv/bin/python -m tests.bench.fleet.run $(BENCH)

soak: python
	@$(PYTHON) -m deploy.prepare --extra test test
	@$(UNSET) .venv/bin/python -m tests.soak.run $(SOAK)

profile: python
	@$(PYTHON) -m deploy.prepare --extra test --extra bench profile
	@$(UNSET) .venv/bin/python -m tests.bench.profiling $(PROFILE)

docs: python
	@test -f docs/generate.py || { echo "make docs: docs/generate.py is not there yet" >&2; exit 1; }
	@$(PYTHON) -m deploy.prepare --extra test docs
	@.venv/bin/python docs/generate.py

python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("make: Python 3.11 or newer is needed, and $(PYTHON) is " + sys.version.split()[0] + "; name another one: make PYTHON=...")'
