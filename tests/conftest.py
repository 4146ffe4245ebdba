"""Servers that several tests share: started on first use, ended with the session."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.servers.moto_server import MotoServer
from tests.servers.radosgw import Radosgw, missing_binaries

# How long an example takes says how busy the machine is; `pytest-timeout` ends what hangs.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

# Processes that tests start count their requests too, and never in the folders of this host.
os.environ["BUCKETWORKS_SPENDING_DIR"] = tempfile.mkdtemp(prefix="bucketworks-spending-")
atexit.register(shutil.rmtree, os.environ["BUCKETWORKS_SPENDING_DIR"], ignore_errors=True)


@pytest.fixture(scope="session")
def moto_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MotoServer]:
    server = MotoServer(tmp_path_factory.mktemp("moto"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def radosgw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Radosgw]:
    """Objects in memory; http and TLS. Whoever stops its gateway starts it again."""
    missing = missing_binaries()
    if missing:
        pytest.skip(
            f"needs {', '.join(missing)}: apt-get install --no-install-recommends radosgw ceph-mon ceph-osd ceph-common"
        )
    server = Radosgw(tmp_path_factory.mktemp("radosgw"))
    yield server
    server.stop()
