"""A core that a test scripts: a directory is the bucket and the mount at once, and any method can be made to hang or to fail.

One rule: it keeps the protocol (plugin/protocol.py), so what passes here fails on the real core only where that one is wrong.
"""

import json
import os
import shutil
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from plugin.errors import NoSuchVolume, PluginError, Refused
from plugin.layout import DIRECTORIES, parse_volname, sidecars, volume_of_key
from plugin.protocol import Request, decode_request, encode_error, encode_result

Answer = Callable[[Request], dict[str, Any]]


class ScriptedCore:
    """`answers` replaces methods; a value of None says nothing until `stop()`. `mount` is where the files are."""

    def __init__(self, root: Path) -> None:
        self.socket = root / "pve.sock"
        self.state = root / "state"
        self.mount = root / "mnt"
        self.answers: dict[str, Answer | None] = {}
        self.requests: list[Request] = []
        for directory in DIRECTORIES.values():
            (self.mount / directory).mkdir(parents=True)
        self._over = threading.Event()
        core = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                request = decode_request(self.rfile.readline())
                core.requests.append(request)
                for line in core._answer(request):
                    self.wfile.write(line)

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True

        self._server = Server(str(self.socket), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        config = self.socket.with_name("config.toml")
        config.write_text(f'[pve]\nstate_dir = "{self.state}"\n')
        return {"BUCKETWORKS_PVE_SOCKET": str(self.socket), "BUCKETWORKS_CONFIG": str(config)}

    def mounted_in(self, node: Path, *, there: bool = True) -> None:
        """What a node takes for the kernel's list; before it is started for the first time."""
        mounts = node / "proc/self/mounts"
        mounts.parent.mkdir(parents=True, exist_ok=True)
        mounts.write_text(f"bucketworks {self.mount} fuse rw 0 0\n" if there else "")

    def stop(self) -> None:
        if self._over.is_set():
            return
        self._over.set()
        self._server.shutdown()
        self._server.server_close()
        self.socket.unlink()

    def _answer(self, request: Request) -> Iterator[bytes]:
        method = self.answers.get(request.method, getattr(self, f"_{request.method}"))
        if method is None:
            self._over.wait()
            return
        try:
            yield encode_result(request.id, method(request))
        except (PluginError, OSError, ValueError) as error:
            yield encode_error(request.id, error)

    def _file(self, request: Request) -> Path:
        path = self.mount / parse_volname(request.args["volname"]).key
        if not path.exists():
            raise NoSuchVolume(f"there is no {request.args['volname']}")
        return path

    def _ping(self, request: Request) -> dict[str, Any]:
        return {"version": "0", "pid": os.getpid()}

    def _check(self, request: Request) -> dict[str, Any]:
        return {}

    def _deactivate(self, request: Request) -> dict[str, Any]:
        return {}

    def _activate(self, request: Request) -> dict[str, Any]:
        return {"mounted": True}

    def _status(self, request: Request) -> dict[str, Any]:
        used = sum(path.stat().st_size for path in self.mount.rglob("*") if path.is_file())
        return {
            "total": 1 << 40,
            "avail": (1 << 40) - used,
            "used": used,
            "active": True,
            "reason": "",
            "checked_at": 0,
        }

    def _identity(self, request: Request) -> dict[str, Any]:
        return {"identity": "00000000-0000-4000-8000-000000000000"}

    def _list(self, request: Request) -> dict[str, Any]:
        volumes = []
        for path in sorted(self.mount.rglob("*")):
            volume = volume_of_key(str(path.relative_to(self.mount))) if path.is_file() else None
            if volume is None or volume.content not in request.args["content"]:
                continue
            if request.args.get("vmid") not in (None, volume.vmid):
                continue
            notes = Path(f"{path}.notes")
            volumes.append(
                {
                    "volname": volume.volname,
                    "content": volume.content,
                    "format": volume.format,
                    "size": path.stat().st_size,
                    "ctime": int(path.stat().st_mtime),
                    "vmid": volume.vmid,
                    "subtype": volume.subtype,
                    "notes": notes.read_text().partition("\n")[0] if notes.exists() else "",
                    "protected": Path(f"{path}.protected").exists(),
                }
            )
        return {"volumes": volumes}

    def _size(self, request: Request) -> dict[str, Any]:
        path = self._file(request)
        return {"size": path.stat().st_size, "format": "raw", "ctime": int(path.stat().st_mtime)}

    def _fetch(self, request: Request) -> dict[str, Any]:
        path = self._file(request)
        local = self.state / request.storage / "cache" / path.relative_to(self.mount)
        local.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, local)
        return {"path": str(local)}

    def _attribute_get(self, request: Request) -> dict[str, Any]:
        beside = Path(f"{self._file(request)}.{request.args['name']}")
        if request.args["name"] == "protected":
            return {"value": beside.exists()}
        return {"value": beside.read_text() if beside.exists() else ""}

    def _attribute_set(self, request: Request) -> dict[str, Any]:
        beside, value = Path(f"{self._file(request)}.{request.args['name']}"), request.args["value"]
        if value:
            beside.write_text(json.dumps(value) if isinstance(value, int) else value)
        else:
            beside.unlink(missing_ok=True)
        return {}

    def _free(self, request: Request) -> dict[str, Any]:
        path = self._file(request)
        if Path(f"{path}.protected").exists():
            raise Refused(f"{request.args['volname']} is protected", hint="take the protection away first")
        path.unlink()
        for key in sidecars(str(path.relative_to(self.mount))):
            (self.mount / key).unlink(missing_ok=True)
        return {}
