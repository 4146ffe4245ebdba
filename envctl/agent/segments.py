"""Segments of trees on the guest's disk, fetched from the bucket where they are missing.

One rule: a name is the SHA-256 of the bytes, checked at each opening; so the folder may be lost, or damaged, and is filled
again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence

from envctl.agent.client import OBJECTS_MAX, Console
from envctl.agent.errors import Corrupt, Unavailable
from envctl.agent.tree import Tree, TreeReader

_HELD: int = 4


class Segments:
    """`source`: another environment whose home is read, where the console has granted that."""

    def __init__(self, folder: str, console: Console, source: str | None = None) -> None:
        self._folder = folder
        self._console = console
        self._source = source
        self._open: dict[str, TreeReader] = {}

    def tree(self, names: Sequence[str]) -> Tree:
        return Tree(names, self.open)

    def open(self, name: str) -> TreeReader:
        held = self._open.pop(name, None)
        if held is None:
            data = self._read(name)
            if data is None:
                self.fetch([name])
                data = self._read(name)
            if data is None:
                raise Corrupt(f"trees/{name} was fetched, and cannot be read back from {self._folder}")
            held = TreeReader(data)
        self._open[name] = held
        while len(self._open) > _HELD:
            del self._open[next(iter(self._open))]
        return held

    def _read(self, name: str) -> bytes | None:
        try:
            with open(os.path.join(self._folder, name), "rb") as file:
                data = file.read()
        except FileNotFoundError:
            return None
        return data if hashlib.sha256(data).hexdigest() == name else None

    def data(self, name: str) -> bytes:
        """The bytes of a segment that was put here."""
        data = self._read(name)
        if data is None:
            raise Corrupt(f"trees/{name} is not on this disk any more")
        return data

    def put(self, data: bytes) -> str:
        """Keep a segment under its name. Not durable: it is in the bucket before anything refers to it, or made again."""
        name = hashlib.sha256(data).hexdigest()
        temporary = os.path.join(self._folder, "new")
        with open(temporary, "wb") as file:
            file.write(data)
        os.replace(temporary, os.path.join(self._folder, name))
        return name

    def fetch(self, names: Iterable[str]) -> None:
        """Bring those of `names` here that are not."""
        missing = [name for name in dict.fromkeys(names) if not os.path.exists(os.path.join(self._folder, name))]
        missing += [name for name in dict.fromkeys(names) if name not in missing and self._read(name) is None]
        for place in range(0, len(missing), OBJECTS_MAX):
            objects = [f"trees/{name}" for name in missing[place : place + OBJECTS_MAX]]
            request: dict[str, object] = {"objects": objects}
            if self._source:
                request["from"] = self._source
            for entry, url in self._console.urls("/guest/v1/downloads", request).items():
                if url is None:
                    raise Unavailable(f"the console gives no address for {entry}")
                data = self._console.download(url)
                name = entry.split("/")[1]
                if hashlib.sha256(data).hexdigest() != name:
                    raise Corrupt(f"{entry} in the bucket is not what was saved")
                self.put(data)

    def keep_only(self, names: Iterable[str]) -> None:
        """Delete what is none of `names`."""
        wanted = set(names)
        for name in os.listdir(self._folder):
            if name not in wanted:
                os.unlink(os.path.join(self._folder, name))
