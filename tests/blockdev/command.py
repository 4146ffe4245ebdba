"""Running `s3block` inside a test: what it says, what it answers, how it ends."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from blockdev.cli import app
from s3core.console import run


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def answer(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Said]


def command(capsys: pytest.CaptureFixture[str]) -> Command:
    def call(*arguments: object) -> Said:
        capsys.readouterr()
        code = run(app, "s3block", [str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Said(int(code), said.out, said.err)

    return call
