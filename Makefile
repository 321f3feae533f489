# From a bare machine (python3, python3-venv, make, git): `make run` does the main job, `make test` passes the tests.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install -q --disable-pip-version-check --use-pep517 -c constraints.txt
TORCH ?=
PYTEST ?= $(BIN)/python -m pytest
RUNNERS := $(shell expr 2 + `nproc`)

.PHONY: run demo test test-again bench lint sim soak install install-test install-lint apt-test wheel-check clean help

run: install          ## the main job on real files: `stoker demo`
	$(BIN)/stoker demo $(DEMO)

install: $(VENV)/.cluster

$(VENV)/.cluster: setup.py constraints.txt compat/http-parser/setup.py
	$(PYTHON) -m venv $(VENV)
	@echo "installing Stoker and what a cluster needs into $(VENV)/ (about a minute the first time)"
	$(PIP) ./compat/http-parser -e '.[cluster]'
	@touch $@

install-test: install $(VENV)/.test $(if $(TORCH),$(VENV)/.torch) apt-test

$(VENV)/.test: $(VENV)/.cluster
	@echo "installing what the tests need into $(VENV)/"
	$(PIP) ./compat/http-parser -e '.[cluster,test]'
	@touch $@

$(VENV)/.torch: $(VENV)/.cluster
	@echo "installing PyTorch into $(VENV)/ (several GB where no CPU build is at hand)"
	$(PIP) -e '.[torch]'
	@touch $@

$(VENV)/.lint: $(VENV)/.cluster
	$(PIP) -e '.[lint]'
	@touch $@

apt-test:             # nginx: a web server that is not ours, as an under store; ZooKeeper's jars and a Java without a desktop
	@command -v nginx >/dev/null || [ -x /usr/sbin/nginx ] || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && echo "installing nginx-light (an under store in the tests)" \
	  && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nginx-light >/dev/null; } \
	  || echo "nginx is not here and cannot be installed: its tests will be skipped"
	@{ command -v java >/dev/null && [ -e /usr/share/java/zookeeper.jar ]; } || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && echo "installing libzookeeper-java and default-jre-headless (90 MB; the tests start real ZooKeeper servers)" \
	  && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends libzookeeper-java default-jre-headless >/dev/null; } \
	  || echo "ZooKeeper is not here and cannot be installed: its tests will be skipped"

# Most tests wait for processes that they started: more run at once than there are processors. What is compiled once is not by each
# of those processes again, whatever the environment says. Files are in the order that tests/conftest.py gives them.
test test-again: export PYTHONDONTWRITEBYTECODE :=
test: install-test    ## all tests (TORCH=1: also those that need PyTorch)
	@rm -f $(FAILED)  # what test-again tries is of this run
	$(PYTEST) -q --doctest-modules --pyargs stoker.client stoker.executor stoker.framework stoker.mesos stoker.zk
	$(PYTEST) -n $(RUNNERS) --dist loadfile --no-loadscope-reorder $(ARGS)
	@[ -n "$(TORCH)" ] || echo "left out: the PyTorch DataLoader tests (make test TORCH=1); the same readers ran under multiprocessing"

AGAIN_MAX := 3
FAILED := .pytest_cache/v/cache/lastfailed
test-again:           # after `make test` failed: a test that fails only beside others is told, and is a defect to mend
	@failed=$$(grep -c '": true' $(FAILED) 2>/dev/null); [ "$${failed:-0}" -ge 1 ] && [ "$$failed" -le $(AGAIN_MAX) ] \
	  || { echo "$${failed:-0} failed tests: from 1 to $(AGAIN_MAX) are tried again"; exit 1; }
	@! grep '": true' $(FAILED) | grep -v '^ *"tests/' \
	  || { echo "these are not in tests/: a failed doctest is not tried again, and no test ran after it"; exit 1; }
	@echo "UNSTABLE, tried again alone:" && cat $(FAILED)
	$(PYTEST) -q --last-failed --last-failed-no-failures none

sim: install-test     ## the whole scheduler in virtual time: make sim RUNS=1000 [SEED=n]; a failure prints its seed
	STOKER_SIM_RUNS=$(or $(RUNS),200) STOKER_SIM_SEED=$(or $(SEED),1) $(PYTEST) tests/sim -s --timeout 0

soak: install-test    ## leaders killed while others write and read, then an idle cluster listened to: make soak [KILLS=30] [SEED=n] [IDLE_SECONDS=300]
	STOKER_SOAK_KILLS=$(or $(KILLS),30) STOKER_SOAK_SEED=$(or $(SEED),0) $(PYTEST) tests/integration/test_failover.py -s --timeout 0
	STOKER_IDLE_SECONDS=$(or $(IDLE_SECONDS),300) $(PYTEST) tests/integration/test_idle.py -s --timeout 0

bench: install-test   ## side by side with the named peers, as ratios
	$(BIN)/python bench/run.py $(ARGS)

lint: install $(VENV)/.lint  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/ns && mkdir -p build/ns/stoker && cp -rs $(CURDIR)/stoker/. build/ns/stoker/
	for d in client executor framework mesos zk; do cp -rs $(CURDIR)/$$d build/ns/stoker/$$d; done
	$(BIN)/mypy

wheel-check:          ## build the wheel, install it into a fresh venv, start what it installs
	rm -rf build dist && mkdir -p dist && $(PYTHON) -m venv build/wheel
	build/wheel/bin/pip wheel -q --disable-pip-version-check --use-pep517 --no-deps -w dist . ./compat/http-parser
	build/wheel/bin/pip install -q --disable-pip-version-check --use-pep517 -c constraints.txt --find-links dist 'stoker[cluster] @ file://$(CURDIR)/'"$$(ls dist/stoker-*.whl)" dist/http_parser-*.whl
	cd / && $(CURDIR)/build/wheel/bin/stoker --help >/dev/null && $(CURDIR)/build/wheel/bin/python -m stoker.executor --help >/dev/null
	@echo "the wheel starts"

clean:
	rm -rf $(VENV) build dist *.egg-info

help:
	@grep -hE '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/'
