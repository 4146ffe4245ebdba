"""A host and its buckets, as the pages have them: `ceph` is a real radosgw, state is below `/var/lib/bucketworks`, units run.

One rule: what a page says is run word for word, in one bash after the other with one home, but for the words in `table`; that
table is shown with every failure.
"""

import json
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from blockdev.control import ControlClient
from s3core.bucket import Bucket
from s3core.bucket_stack import open_bucket
from s3core.endpoint import Credentials
from s3core.s3_control import S3Control
from s3core.settings import load_config
from tests.architecture.tree import ROOT
from tests.runbook.page import SHAPE, Block, Symptom, marked, missing, symptoms
from tests.servers.processes import free_port
from tests.servers.radosgw import Radosgw
from tests.system.machine import qemu_io

RUNBOOK = ROOT / "docs/runbook"
PATIENCE_S = 240.0
VOLUME = "s3://ceph/bucket/vm1"
FAST = 'commit_interval_s = "300ms"\nlease_s = "3s"\n'


@dataclass(frozen=True, slots=True)
class Answer:
    code: int
    text: str
    """Both streams, as they came."""


@dataclass
class World:
    """One host. `other` makes a second one with the same buckets."""

    directory: Path
    radosgw: Radosgw
    tenant: str
    access_key: str
    secret_key: str
    url: str
    port: int
    table: dict[str, str] = field(default_factory=dict)
    story: list[str] = field(default_factory=list)

    @classmethod
    def make(cls, directory: Path, radosgw: Radosgw, *, buckets: Sequence[str] = ("bucket",), url: str = "") -> Self:
        """A tenant of its own on the server, so that its buckets have the names that the pages say."""
        tenant = f"world{uuid4().hex[:12]}"
        access_key, secret_key = f"AK{tenant}", f"SK{uuid4().hex}"
        radosgw.create_user(f"{tenant}$someone", access_key, secret_key)
        made = cls(directory, radosgw, tenant, access_key, secret_key, url or radosgw.endpoint().url, free_port())
        control = made.control()
        for bucket in buckets:
            control.create_bucket(bucket)
        control.close()
        made._furnish()
        return made

    def other(self, name: str) -> "World":
        """Another host with the same configuration and nothing else."""
        directory = self.directory / name
        directory.mkdir()
        made = World(
            directory,
            self.radosgw,
            self.tenant,
            self.access_key,
            self.secret_key,
            self.url,
            free_port(),
            story=self.story,
        )
        made._furnish()
        return made

    def _furnish(self) -> None:
        for folder in ("home", "bin", "state", "etc"):
            (self.directory / folder).mkdir(parents=True)
        self.table |= {
            "/var/lib/bucketworks": str(self.state),
            "/etc/bucketworks": str(self.directory / "etc"),
            "127.0.0.1:3260": f"127.0.0.1:{self.port}",
            # Where these are made without saying it, their state is below /var/lib.
            "cowsync init photos-again ": f"cowsync init photos-again --state-dir {self.state}/cowsync/photos-again ",
            "cowsync init photos ": f"cowsync init photos --state-dir {self.state}/cowsync/photos ",
            "s3integrity init archive ": f"s3integrity init archive --state-dir {self.state}/ledger/archive ",
        }
        scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
        for command, target in scripts.items():
            module, _, function = target.partition(":")
            self._program(
                command,
                f"#!{sys.executable}\nimport sys\n\nsys.path[0] = {str(ROOT)!r}\n"
                f"from {module} import {function}\n\nsys.exit({function}())\n",
            )
        for command in ("systemctl", "journalctl"):
            self._program(
                command, f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/runbook/services.py {command} "$@"\n'
            )
        keys = self.directory / "etc/ceph.keys"
        keys.write_text(f'access_key = "{self.access_key}"\nsecret_key = "{self.secret_key}"\n')
        keys.chmod(0o600)
        self.config.write_text(
            f'[endpoint.ceph]\npreset = "ceph"\nurl = "{self.url}"\nregion = "us-east-1"\naddressing = "path"\n'
            f'credentials = "file:{keys}"\nconnect_timeout_s = 2\nread_timeout_s = 10\n\n'
            f'[s3block]\nstate_dir = "{self.state}"\njournal_bytes = "64M"\ncache_bytes = "64M"\n'
            f'listen = ["127.0.0.1:{self.port}"]\n\n'
        )
        self.config.chmod(0o600)

    def _program(self, name: str, text: str) -> None:
        script = self.directory / "bin" / name
        script.write_text(text)
        script.chmod(0o755)

    # --- the host

    @property
    def config(self) -> Path:
        return self.directory / "etc/config.toml"

    @property
    def state(self) -> Path:
        return self.directory / "state"

    @property
    def target(self) -> str:
        """Of volume vm1, as an initiator says it."""
        return f"iscsi://127.0.0.1:{self.port}/iqn.2025-01.internal.bucketworks:vm1/0"

    def configure(self, text: str) -> None:
        with self.config.open("a") as file:
            file.write(text + "\n")

    def reconfigure(self, old: str, new: str) -> None:
        before = self.config.read_text()
        assert old in before, f"{old!r} is not in the configuration"
        self.config.write_text(before.replace(old, new))

    def here(self, text: str) -> str:
        for said, real in self.table.items():
            text = text.replace(said, real)
        return text

    def said(self, text: str) -> str:
        for said, real in self.table.items():
            text = text.replace(real, said)
        return text

    def run(self, text: str) -> Answer:
        """Commands as a page has them, in one bash. The exit status is that of the last."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "BUCKETWORKS_"))}
        begun = time.monotonic()
        done = subprocess.run(
            ["bash", "-c", self.here(text)],
            cwd=self.directory / "home",
            env=kept
            | {
                "PATH": f"{self.directory / 'bin'}:{kept['PATH']}:/usr/sbin:/sbin",
                "HOME": str(self.directory / "home"),
                "BUCKETWORKS_CONFIG": str(self.config),
                "BUCKETWORKS_SPENDING_DIR": str(self.state / "spending"),
                "SERVICES": str(self.directory / "services"),
                "COLUMNS": "200",
                "LC_ALL": "C.UTF-8",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE_S,
            check=False,
        )
        answer = Answer(done.returncode, self.said(done.stdout.decode(errors="replace")))
        took_s = time.monotonic() - begun
        self.story.append(f"$ {text.rstrip()}\n{answer.text}(exit status {answer.code}, {took_s:.1f} s)")
        return answer

    def do(self, text: str, *, code: int = 0) -> str:
        answer = self.run(text)
        assert answer.code == code, self._told(f"{text!r} ended with {answer.code}")
        return answer.text

    def json(self, text: str, *, code: int | None = 0) -> Any:
        answer = self.run(f"{text} --json 2>/dev/null")
        assert code is None or answer.code == code, self._told(f"{text!r} ended with {answer.code}")
        return json.loads(answer.text)

    def _told(self, what: str) -> str:
        table = "\n".join(f"  {said} is {real}" for said, real in self.table.items())
        return f"{what}\n" + "\n".join(self.story[-12:]) + f"\nhere:\n{table}"

    def end(self) -> None:
        """Whatever still runs is ended, by its pid."""
        for file in (self.directory / "services").glob("*.pid"):
            self.run(f"systemctl kill -s KILL {file.stem}")

    # --- pages

    def play_block(self, block: Block) -> Answer:
        answer = self.run(block.text)
        assert answer.code == block.code, self._told(f"line {block.line}: ended with {answer.code}, not {block.code}")
        lost = missing(answer.text, block.printed)
        assert not lost, self._told(f"line {block.line}: not printed: {lost}")
        return answer

    def play(self, page: str, *leads: str, heading: str = "", without: Sequence[str] = ()) -> list[Answer]:
        """The blocks below these lead-ins of a symptom, in order; those marked with one of `without` are passed over."""
        symptom = find(page, heading)
        found: list[Answer] = []
        for lead in leads:
            assert lead in SHAPE
            chosen = [block for block in symptom.blocks[lead] if not block.not_run and block.mark not in without]
            assert chosen, f"{symptom.name}: nothing to run below {lead}"
            found += [self.play_block(block) for block in chosen]
        return found

    def control(self) -> S3Control:
        return S3Control(
            self.radosgw.endpoint(credentials=Credentials(self.access_key, self.secret_key, source="the test"))
        )

    def play_marked(self, document: str, *marks: str) -> list[Answer]:
        """The blocks of these names in a document, in this order."""
        return [self.play_block(marked(document, mark)) for mark in marks]

    # --- the buckets

    def bucket(self, name: str = "bucket") -> Bucket:
        """Not by the world's own way to the server, which may be cut."""
        endpoint = self.directory / "direct.toml"
        text = self.config.read_text().replace(self.url, self.radosgw.endpoint().url)
        endpoint.write_text(text)
        endpoint.chmod(0o600)
        return open_bucket(f"s3://ceph/{name}", load_config(endpoint))[0]

    def limit_objects(self, objects: int) -> None:
        """Bucket `bucket` takes no more than that many, by a quota of the server's."""
        self.radosgw.limit_objects(f"{self.tenant}/bucket", objects)

    def keys(self, prefix: str, bucket: str = "bucket") -> list[str]:
        return [key.decode() for key in self.bucket(bucket).list_page(prefix=prefix).keys]

    # --- a volume

    def make_volume(self, *, size: str = "64M", settings: str = FAST) -> None:
        self.configure(f'[volume.vm1]\nurl = "s3://ceph/bucket"\n{settings}')
        self.do(f"s3block create vm1 --size {size}")

    def serve(self) -> None:
        self.do("systemctl start s3block@vm1")

    def write(self, *lines: str) -> str:
        return qemu_io(self.target, *lines)

    def carry(self) -> None:
        """Until the bucket has everything that was written so far."""
        with ControlClient(self.state / "vm1", timeout_s=PATIENCE_S) as daemon:
            daemon.ask("flush")

    def until(self, command: str, holds: Any, *, seconds: float = 120.0) -> Any:
        give_up = time.monotonic() + seconds
        while True:
            answer = self.json(command, code=None)
            if holds(answer):
                return answer
            assert time.monotonic() < give_up, self._told(f"{command!r} does not come to it: {answer}")
            time.sleep(0.3)

    def until_logged(self, unit: str, message: str, *, seconds: float = 120.0) -> None:
        log, give_up = self.directory / f"services/{unit}.log", time.monotonic() + seconds
        while message not in log.read_text(errors="replace"):
            assert time.monotonic() < give_up, self._told(f"{unit} never says {message!r}: {log.read_text()[-2000:]}")
            time.sleep(0.1)


def find(page: str, heading: str = "") -> Symptom:
    chosen = [one for one in symptoms(RUNBOOK / page) if one.heading == heading]
    assert len(chosen) == 1, f"{page} has {len(chosen)} symptoms called {heading!r}"
    return chosen[0]
