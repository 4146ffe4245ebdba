# Every command a developer needs; docs/hacking.md says more. `make` alone lists them.

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --no-input
READY := $(VENV)/.ready
# The system packages that tests drive: real initiators, a real file system checker, a real S3 server;
# and what builds and boots a Debian of its own, for initiators and targets that live in a kernel.
TEST_PACKAGES := qemu-utils qemu-block-extra libiscsi-bin e2fsprogs radosgw ceph-mon ceph-osd ceph-common openssl \
	qemu-system-x86 seabios mmdebstrap debian-archive-keyring kmod rclone chromium fuse3 libfuse3-3 lzop zstd perl libjson-perl libjson-xs-perl \
	postgresql acl attr libcap2-bin systemd bash zsh fish mandoc groff-base lintian prometheus faketime
DEMO_PACKAGES := qemu-utils qemu-block-extra e2fsprogs
BENCH_PACKAGES := qemu-utils qemu-block-extra tgt rclone
# Those that `make bench-peers` measures beside us, and what loads them; no test needs one of them.
PEER_PACKAGES := $(BENCH_PACKAGES) s3backer nbdkit nbdkit-plugin-python python3-boto3 fio restic qemu-system-common \
	fuse2fs e2fsprogs xfsprogs sqlite3 strace linux-perf
UV_VERSION := 0.13.8
SEED ?= 1
RUNS ?= 1000
LANES ?= 2
PYTHON ?=
export PYTHON

.DEFAULT_GOAL := help
.PHONY: help venv assets check lint test demo demo-envctl bench bench-peers deb wheel sbom audit site sim torture blackout lock docs clean

help: ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F'\t' '{printf "  make %-11s %s\n", $$1, $$2}'

venv: $(READY) ## the environment in .venv, from requirements-dev.txt with hashes

$(READY): requirements-dev.txt pyproject.toml .ci/find-python
	@python=$$(.ci/find-python) && \
	if [ -n "$(PYTHON)" ] || ! $(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		echo "making $(VENV) with $$("$$python" --version)"; "$$python" -m venv --clear $(VENV); fi
	@echo "installing requirements-dev.txt"
	@$(PIP) install -qq --require-hashes -r requirements-dev.txt
	@$(PIP) install -qq --no-deps --no-build-isolation -e .
	@touch $@

assets: $(READY) ## browser code of others (htmx, noVNC, xterm.js), pinned, for the console's pages
	@$(PY) -m envctl.web.assets

lint: $(READY)
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports

check: lint assets ## format, lint, types, imports and the fast tests: run it before every commit
	@$(PY) -m pytest -q -m "not slow and not rgw and not initiator and not guest and not browser"

test: ## everything, set-up included: what continuous integration runs
	@.ci/system-packages $(TEST_PACKAGES)
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory assets || echo "note: no browser code; the tests that need it are skipped"
	@$(PY) -m tests.lanes

demo: ## a disk in an object store, written and read by a real initiator, in under three minutes
	@.ci/system-packages $(DEMO_PACKAGES)
	@$(MAKE) --no-print-directory venv
	@$(PY) deploy/demo.py

demo-envctl: ## the console on a cluster that is not there, with people, machines and backups to click through
	@$(MAKE) --no-print-directory assets
	@$(PY) deploy/envctl_demo.py

bench: ## figures of this machine, beside tgt and rclone in the same run, and what writes and sizes cost
	@.ci/system-packages $(BENCH_PACKAGES)
	@$(MAKE) --no-print-directory venv
	@$(PY) -m bench

bench-peers: ## Bucketworks beside s3backer, nbdkit, tgt, rclone and restic: one run, tables and plots in .results
	@.ci/system-packages $(PEER_PACKAGES)
	@$(MAKE) --no-print-directory venv
	@$(PY) -m bench.peers $(PEERS)

deb: $(READY) ## the Debian packages, in dist/
	@$(PY) -m envctl.web.assets || echo "note: no browser code; the console in the package has no screens and terminals"
	@$(PY) deploy/debian/make_deb.py

wheel: $(READY) ## the wheel for pip and pipx, in dist/; the same bytes each time
	@$(PY) -m envctl.web.assets || echo "note: no browser code; the console of this wheel has no screens and terminals"
	@$(PY) deploy/release/make_wheel.py

sbom: $(READY) ## what all this is made of (CycloneDX), in dist/
	@$(PY) deploy/release/make_sbom.py

audit: $(READY) ## known vulnerabilities of what is locked, where a database of them can be asked
	@$(PY) deploy/release/audit.py || [ $$? -eq 75 ]

sim: $(READY) ## replay one simulated episode: make sim SEED=1234
	@$(PY) -m tests.simulation $(SEED)

torture: $(READY) ## kill real servers at random: make torture RUNS=1000 LANES=2 SEED=1
	@nice $(PY) -m tests.system.torture --runs $(RUNS) --lanes $(LANES) --seed $(SEED)

blackout: $(READY) ## five minutes without the store, for real: writes go on, nothing is lost
	@$(PY) -m tests.system.blackout --seconds 300

docs: $(READY) ## draw the documents that come from tables in the code
	@$(PY) -m tests.architecture.documents
	@$(PY) -m bench.peers.publish

site: ## docs/ as a site with search in build/site; nothing of it needs a network to be read
	@python=$$(.ci/find-python) && "$$python" deploy/site/make_site.py

lock: $(READY) ## choose new versions within pyproject.toml and write the requirements files
	@$(PY) -m venv build/lock && build/lock/bin/python -m pip install -qq --disable-pip-version-check uv==$(UV_VERSION)
	@.ci/lock build/lock/bin/uv

clean: ## remove what was built; .venv too
	@rm -rf $(VENV) build dist *.egg-info .demo .results .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
