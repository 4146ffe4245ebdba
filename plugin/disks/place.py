"""Where the disks of a storage are, on the store and on this node, and the configuration that `s3block` is given for them.

One rule: `s3block` reads files, so what Proxmox VE's storage.cfg says of a storage is written out for it: once for the
storage's commands, once for each disk that is served, both mode 0600 in the storage's state directory. They are drawn anew
each time they are used; nothing is lost with them.
"""

import json
import os
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import SecretStr

from plugin.configuration import Storage
from plugin.errors import BadVolume
from s3core.settings import Config

SUFFIX: Final = "/disks"
LOOPBACK: Final = "127.0.0.1"
MEMBERS: Final = Path("etc/pve/.members")
SECRET: Final = Path("etc/pve/priv/bucketworks/gateway.key")


@dataclass(frozen=True, slots=True)
class DiskPlace:
    """`state_dir` and `run_dir` are of the disks of this storage. `config` has the storage's endpoint in it. `local_host`:
    where this node's initiators reach its gateway; `peer_host`: where other nodes do, empty for nowhere; both at `port`."""

    storage: str
    store_url: str
    config: Config
    state_dir: Path
    run_dir: Path
    secret: Path
    node: str
    port: int = 3265
    local_host: str = LOOPBACK
    peer_host: str = ""
    flush: str = "local"
    cache_bytes: int = 4 << 30
    journal_bytes: int = 1 << 30
    lease_s: float = 600.0
    passphrase: str = ""

    @property
    def config_path(self) -> Path:
        return self.state_dir / "s3block.toml"

    @property
    def passphrase_path(self) -> Path:
        return self.state_dir / "passphrase"

    @property
    def key_source(self) -> str:
        """For `--key`; empty where disks are not encrypted."""
        return f"passphrase-file:{self.passphrase_path}" if self.passphrase else ""

    def volume_dir(self, volume: str) -> Path:
        """Where `s3block` keeps the volume's journal, map and cache."""
        return self.state_dir / volume

    def serve_config_path(self, volume: str) -> Path:
        return self.state_dir / f"{volume}.toml"

    def portal(self) -> str:
        """Where initiators of this node log in, as HOST:PORT."""
        return f"{self.local_host}:{self.port}"

    def write_config(self) -> Path:
        """For commands. Durable enough: it is written before each use. Raises OSError."""
        self.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self.passphrase:
            _replace(self.passphrase_path, self.passphrase + "\n")
        _replace(self.config_path, toml(self._document()))
        return self.config_path

    def write_serve_config(self, volume: str, target: str, *, read_only: bool) -> Path:
        """For `s3block serve` of that volume under that iSCSI name. Raises OSError."""
        self.write_config()
        document = self._document()
        document["volume"] = {
            volume: {
                "url": self.store_url,
                "iqn": target,
                "listen": [f"{LOOPBACK}:0"],
                "state_dir": str(self.volume_dir(volume)),
                "flush": self.flush,
                "cache_bytes": self.cache_bytes,
                "journal_bytes": self.journal_bytes,
                "lease_s": self.lease_s,
                "read_only": read_only,
                **({"key": self.key_source} if self.passphrase else {}),
            }
        }
        path = self.serve_config_path(volume)
        _replace(path, toml(document))
        return path

    def _document(self) -> dict[str, Any]:
        told = self.config.model_dump(by_alias=True, exclude_unset=True)
        told.pop("pve", None)
        told["volume"] = {}
        # What the node's own volumes have in common says nothing of disks, but for what they log.
        common = told.get("s3block", {})
        told["s3block"] = {
            **{key: value for key, value in common.items() if key.startswith("log_")},
            "state_dir": str(self.state_dir),
        }
        return told


def place_of(storage: Storage, config: Config, root: Path = Path("/"), *, node: str = "") -> DiskPlace:
    """Of a storage of type bucketdisks. Raises BadVolume for another one, ConfigError."""
    if storage.type != "bucketdisks":
        raise BadVolume(f"storage {storage.id} holds files, no disks")
    settings = config.pve
    node = node or settings.node or socket.gethostname().partition(".")[0]
    joined = storage.join(config)
    return DiskPlace(
        storage=storage.id,
        store_url=storage.url + SUFFIX,
        config=joined,
        state_dir=Path(settings.state_dir) / storage.id / "disks",
        run_dir=Path(settings.run_dir) / "disks" / storage.id,
        secret=root / SECRET,
        node=node,
        port=storage.gateway_port,
        local_host=settings.gateway_listen,
        peer_host=settings.gateway_peer or member_address(root, node),
        flush=storage.flush,
        cache_bytes=storage.disk_cache_bytes,
        journal_bytes=storage.disk_journal_bytes,
        lease_s=storage.lease_s,
        passphrase=storage.encryption_key if storage.encryption else "",
    )


def member_address(root: Path, node: str) -> str:
    """The node's address in the cluster, as pmxcfs tells it; empty where it is in none."""
    try:
        told = json.loads((root / MEMBERS).read_bytes())
        return str(told["nodelist"][node]["ip"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def toml(document: dict[str, Any], prefix: str = "") -> str:
    """A configuration as TOML. Pure."""
    plain = {key: value for key, value in document.items() if not isinstance(value, dict) and value is not None}
    lines = [f"{_key(key)} = {_value(value)}" for key, value in plain.items()]
    text = (f"[{prefix}]\n" if prefix and lines else "") + "".join(f"{line}\n" for line in lines)
    for key, value in document.items():
        if isinstance(value, dict) and value:
            text += toml(value, f"{prefix}.{_key(key)}" if prefix else _key(key))
    return text


def _key(key: str) -> str:
    return json.dumps(key, ensure_ascii=True)


def _value(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case SecretStr():
            return _value(value.get_secret_value())
        case list() | tuple() | set() | frozenset():
            return f"[{', '.join(_value(item) for item in value)}]"
    # JSON's strings are TOML's, but for what lies beyond the basic plane, which is written as it is.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _replace(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(aside, path)
