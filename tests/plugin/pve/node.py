"""A Proxmox VE node that is a directory, with the real Perl code of a checkout, our plugins and whatever core a test gives it.

PVE_SRC names directories of plain source checkouts, one for each release, with `:` between: each has pve-storage, pve-common,
pve-cluster, pve-access-control, pve-guest-common and pve-apiclient in it. Nothing of them is in this project; what they need of
Debian is `PERL_PACKAGES`.

One rule: what is not upstream's is said in lib/: four modules of compiled code, and the paths that are put below the node.
"""

import json
import os
import platform
import select
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.architecture.tree import ROOT

HERE: Final = Path(__file__).parent
PERL: Final = ROOT / "plugin" / "perl"
PERL_PACKAGES: Final = (
    "libjson-perl libjson-xs-perl libfile-chdir-perl libcrypt-openssl-rsa-perl libcrypt-openssl-random-perl libclone-perl"
    " libdevel-cycle-perl libfilesys-df-perl libhttp-daemon-perl libio-stringy-perl liblinux-inotify2-perl libnet-dbus-perl"
    " libnet-ip-perl libnetaddr-ip-perl libstring-shellquote-perl libtimedate-perl liburi-perl libwww-perl"
    " libyaml-libyaml-perl libanyevent-perl libposix-strptime-perl libxml-libxml-perl libuuid-perl librrds-perl"
    " libauthen-pam-perl libnet-ldap-perl libmime-base32-perl libnet-ssleay-perl qemu-utils"
)


def checkouts() -> list[Path]:
    """Of PVE_SRC; empty where it is not set."""
    return [Path(name) for name in os.environ.get("PVE_SRC", "").split(":") if name]


class PveError(Exception):
    """What a REST handler died with, and in `output` what it and its tasks printed."""

    def __init__(self, text: str, output: str) -> None:
        super().__init__(text)
        self.output = output

    def __str__(self) -> str:
        return f"{super().__str__()}{self.output}"


@dataclass(frozen=True, slots=True)
class Done:
    data: Any
    output: str


class Node:
    """Started by `start()`; each `api()` call is a process of its own, as in pvedaemon, and so sees what other calls left."""

    def __init__(
        self, checkout: Path, root: Path, environment: dict[str, str], *, plugins: tuple[Path, ...] = ()
    ) -> None:
        self.root = root
        self.name = platform.node().split(".")[0]
        root.mkdir(parents=True, exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("BUCKETWORKS_", "PERL"))}
        self.environment = kept | {
            "PVE_SRC": str(checkout),
            "PVE_NODE": str(root),
            "PVE_PERL": ":".join(str(tree) for tree in (PERL, *plugins)),
            "LC_ALL": "C.UTF-8",
            **environment,
        }
        self.loaded = ""
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """`loaded` is what loading PVE::Storage printed. PveError where that failed."""
        self._process = subprocess.Popen(
            ["perl", "-T", str(HERE / "api.pl")],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        told = self._read(120)
        self.loaded = told["output"]
        if "error" in told:
            raise PveError(told["error"], told["output"])

    def stop(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(timeout=60)
            self._process = None

    def api(self, method: str, place: str, /, *, seconds: float = 120, **params: Any) -> Done:
        """Calls the handler of that path; what is in the path is repeated for it, as pveproxy does. PveError."""
        assert self._process is not None, "start() the node"
        assert self._process.stdin is not None
        request = {"method": method, "path": place, "params": {_plain(name): value for name, value in params.items()}}
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        told = self._read(seconds)
        if "error" in told:
            raise PveError(told["error"], told["output"])
        return Done(told.get("data"), told["output"])

    def storage(self, method: str, storage: str, rest: str = "", /, **params: Any) -> Done:
        """`/nodes/NODE/storage/STORAGE/REST`."""
        return self.api(method, f"/nodes/{self.name}/storage/{storage}{rest}", storage=storage, **params)

    def pvesm(self, *words: str, seconds: float = 120) -> str:
        """Its output, both streams; AssertionError with it where it fails."""
        done = subprocess.run(
            ["perl", str(HERE / "pvesm.pl"), *words],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
        # Syslog has no socket in a container, and says so on each start.
        output = "".join(line for line in done.stdout.splitlines(keepends=True) if "setlogsock" not in line)
        if done.returncode:
            raise AssertionError(f"pvesm {' '.join(words)}: {output}")
        return output

    @property
    def storage_cfg(self) -> str:
        return (self.root / "etc/pve/storage.cfg").read_text()

    def _read(self, seconds: float) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        deadline = time.monotonic() + seconds
        line = b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise AssertionError(f"no answer within {seconds} s")
            chunk = os.read(self._process.stdout.fileno(), 1 << 16)
            if not chunk:
                assert self._process.stderr is not None
                raise AssertionError(f"the node's Perl ended: {self._process.stderr.read().decode()}")
            line += chunk
        told: dict[str, Any] = json.loads(line)
        return told


def _plain(name: str) -> str:
    """`prune_backups` of Python is `prune-backups`."""
    return name.replace("_", "-")
