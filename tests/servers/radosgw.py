"""One node of Ceph with its S3 gateway, started by tests: monitor, one OSD, radosgw, all on loopback.

One rule: the daemons run in the foreground as our children, without root, without cephx, in a directory that
holds everything they write, so that ending them and forgetting them is one step. http and TLS are both served.

Comes from Debian's packages radosgw, ceph-mon, ceph-osd and ceph-common. Ready in about 2 s with `memstore` (the
objects live in the OSD's memory) and 6 s with `bluestore` (they survive `kill` and `restart`).
"""

import os
import shutil
import signal
import subprocess
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

from s3core.endpoint import Credentials, Endpoint
from tests.servers.certificates import make_server_certificate
from tests.servers.processes import ServerFailed, end, free_port, start, tail, wait_for_port

BINARIES = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
ACCESS_KEY = "testkey"
SECRET_KEY = "testsecret"

# paxos_*: without them the monitor alone takes ten seconds. tcp_nodelay: without it every PUT waits 40 ms for a
# delayed ACK. osd_client_watch_timeout, objecter_tick_interval: a gateway that was killed holds up every change of a
# bucket for 30 s otherwise. osd_*_on_start: a race at start-up otherwise kills one memstore OSD in four.
_CONFIGURATION = """
[global]
fsid = {fsid}
mon_host = v1:127.0.0.1:{mon_port}
mon_initial_members = a
ms_bind_msgr2 = false
ms_bind_ipv6 = false
public_network = 127.0.0.0/8
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pgp_num = 8
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_data_avail_crit = 1
mon_data_avail_warn = 1
mon_max_pg_per_osd = 1000
run_dir = {directory}
admin_socket = {directory}/$name.$pid.asok
log_file = {directory}/$name.log
log_to_stderr = false
pid_file =
[mon]
mon_data = {directory}/mon
paxos_propose_interval = 0.05
paxos_min_wait = 0.01
[osd]
osd_data = {directory}/osd
osd_objectstore = {objectstore}
memstore_device_bytes = 2147483648
bluestore_block_size = 4294967296
osd_memory_target = 939524096
osd_client_watch_timeout = 2
osd_class_update_on_start = false
osd_crush_update_on_start = false
[client.rgw]
rgw_data = {directory}/rgw
rgw_frontends = beast endpoint=127.0.0.1:{http_port} tcp_nodelay=1 {tls}
rgw_enable_usage_log = false
rgw_thread_pool_size = 64
objecter_tick_interval = 0.5
rgw_dns_name = s3.localhost
rgw_crypt_require_ssl = false
rgw_crypt_s3_kms_backend = testing
rgw_crypt_s3_kms_encryption_keys = test-key=YmluCmJvb3N0CmJvb3N0LWJ1aWxkCmNlcGguY29uZgo=
{gateway}
"""


def missing_binaries() -> list[str]:
    return [name for name in BINARIES if shutil.which(name) is None]


class Radosgw:
    """A running cluster. `durable` keeps objects on disk, so that they outlive `kill`. `gateway` has further settings of the
    gateway, a line each."""

    def __init__(self, directory: Path, *, durable: bool = False, gateway: str = "") -> None:
        self._root = directory
        self.durable = durable
        self._gateway = gateway
        self._processes: dict[str, subprocess.Popen[bytes]] = {}  # by daemon, in the order of their start
        for attempt in range(3):
            # Another process may have taken a port between our asking and the daemon's binding.
            try:
                self._create(directory / f"node{attempt}")
            except ServerFailed:
                self.stop()
                if attempt == 2:
                    raise
            else:
                break

    def _create(self, directory: Path) -> None:
        for name in ("mon", "osd", "rgw"):
            (directory / name).mkdir(parents=True)
        self._directory = directory
        self.certificate = make_server_certificate(directory / "tls")
        mon_port, self.http_port, self.tls_port = free_port(), free_port(), free_port()
        fsid = str(uuid.uuid4())
        (directory / "ceph.conf").write_text(
            _CONFIGURATION.format(
                fsid=fsid,
                mon_port=mon_port,
                directory=directory,
                objectstore="bluestore" if self.durable else "memstore",
                http_port=self.http_port,
                gateway=self._gateway or "rgw_enable_ops_log = false",
                tls=f"ssl_endpoint=127.0.0.1:{self.tls_port} ssl_certificate={self.certificate.certificate_file}"
                f" ssl_private_key={self.certificate.key_file}",
            )
        )
        address = f"v1:127.0.0.1:{mon_port}"
        map_file = str(directory / "monmap")
        self._run("monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", "a", address, map_file)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", map_file)
        self._start("mon", "ceph-mon", "-f", "-i", "a")
        self._run("ceph", "osd", "create")
        self._run("ceph-osd", "-i", "0", "--mkfs")
        self._run("ceph", "osd", "crush", "add", "osd.0", "1.0", "host=n1", "root=default")
        self._start("osd", "ceph-osd", "-f", "-i", "0")
        self.start_gateway()
        self.create_user("test", ACCESS_KEY, SECRET_KEY)

    def create_user(self, uid: str, access_key: str, secret_key: str) -> None:
        keys = ["--access-key", access_key, "--secret-key", secret_key]
        self._run("radosgw-admin", "-n", "client.rgw", "user", "create", "--uid", uid, "--display-name", uid, *keys)

    def limit_objects(self, bucket: str, objects: int) -> None:
        """A quota: what would be one more is answered 403 QuotaExceeded, after a moment."""
        chosen = ("--quota-scope=bucket", f"--bucket={bucket}")
        self._run("radosgw-admin", "quota", "set", *chosen, f"--max-objects={objects}")
        self._run("radosgw-admin", "quota", "enable", *chosen)

    def endpoint(self, *, tls: bool = False, **changes: Any) -> Endpoint:
        """This server as settings would describe it (TLS with its authority as ca_file), with `changes`."""
        endpoint = Endpoint(
            name="radosgw",
            url=f"https://127.0.0.1:{self.tls_port}" if tls else f"http://127.0.0.1:{self.http_port}",
            region="us-east-1",
            addressing="path",
            credentials=Credentials(ACCESS_KEY, SECRET_KEY, source="the test"),
            preset="ceph",
            ca_file=str(self.certificate.authority_file) if tls else "",
            if_match_quoted=False,
        )
        return replace(endpoint, **changes)

    # --- faults ------------------------------------------------------------------------------------------

    def kill_gateway(self) -> None:
        """SIGKILL to radosgw alone; what it was doing is cut off, the objects stay (memstore too)."""
        end(self._processes.pop("rgw"))

    def start_gateway(self) -> None:
        process = self._start("rgw", "radosgw", "-f", "-n", "client.rgw")
        wait_for_port(self.http_port, process, self._log_file("rgw"))
        wait_for_port(self.tls_port, process, self._log_file("rgw"))

    def kill(self) -> None:
        """SIGKILL to every daemon at once. Objects survive only if `durable`."""
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()
        self.stop()

    def restart(self) -> None:
        """Start again after `kill`, on the same ports."""
        if not self.durable:
            raise ValueError("a memstore cluster loses its objects with its processes; make it durable")
        self._start("mon", "ceph-mon", "-f", "-i", "a")
        self._start("osd", "ceph-osd", "-f", "-i", "0")
        self.start_gateway()

    def pause_gateway(self) -> None:
        """SIGSTOP: connections stay open and nothing answers, as with a hung server or a partition."""
        self._processes["rgw"].send_signal(signal.SIGSTOP)

    def resume_gateway(self) -> None:
        self._processes["rgw"].send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End everything; there is nothing to save."""
        for process in reversed(self._processes.values()):
            end(process)
        self._processes.clear()

    # --- processes ---------------------------------------------------------------------------------------

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "CEPH_CONF": str(self._directory / "ceph.conf")}

    def _log_file(self, daemon: str) -> Path:
        return self._directory / f"{daemon}.out"

    def _start(self, daemon: str, *command: str) -> "subprocess.Popen[bytes]":
        process = start(command, self._log_file(daemon), self._environment())
        self._processes[daemon] = process
        return process

    def _run(self, *command: str) -> None:
        began = time.monotonic()
        try:
            done = subprocess.run(
                command, env=self._environment(), capture_output=True, timeout=60, check=False, stdin=subprocess.DEVNULL
            )
        except subprocess.TimeoutExpired as error:
            logs = "\n".join(tail(self._log_file(daemon)) for daemon in self._processes)
            raise ServerFailed(f"{command}: no end after {time.monotonic() - began:.0f} s\n{logs}") from error
        if done.returncode:
            raise ServerFailed(f"{command} ended with {done.returncode}:\n{done.stderr.decode(errors='replace')}")
