"""A machine of this host as a value, and the text of its `machine.json`. Pure.

One rule: the folder's name says whose machine it is (`env-<environment id>.<generation>`), so that even a folder in which
nothing else was written yet is found again. The file says the rest.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Final

from envctl.drivers.port import MachineRef
from envctl.identifiers import ALPHABET, TAG_PREFIX, tag_of

FORMAT: Final = 1
_FOLDER = re.compile(rf"({TAG_PREFIX}[0-7][{ALPHABET}]{{25}})\.(0|[1-9][0-9]{{0,9}})")


@dataclass(frozen=True, slots=True)
class Machine:
    """What `start` makes a QEMU of."""

    environment: str
    generation: int
    name: str
    description: str
    source: str
    """The template's image, which the disk is a layer over (or was copied from)."""
    source_stamp: str
    """Size and time of that image as it was cloned; a layer over anything else would be garbage."""
    options: Mapping[str, str] = field(default_factory=dict)
    cores: int = 1
    memory_mib: int = 1024
    disk_gib: int = 0
    uuid: str = ""
    seed_url: str = ""

    @property
    def tag(self) -> str:
        return tag_of(self.environment)

    @property
    def ref(self) -> MachineRef:
        return ref_of(self.environment, self.generation)


def ref_of(environment: str, generation: int) -> MachineRef:
    return MachineRef(f"{tag_of(environment)}.{generation}")


def parse_ref(text: str) -> tuple[str, int] | None:
    """Tag and generation of a folder's name; None where it is none of ours."""
    found = _FOLDER.fullmatch(text)
    return (found[1], int(found[2])) if found else None


def encode(machine: Machine) -> bytes:
    return json.dumps({"format": FORMAT, **asdict(machine)}, indent=1, sort_keys=True).encode() + b"\n"


def decode(text: bytes) -> Machine:
    """ValueError for what `encode` did not make, whatever it is."""
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT:
        raise ValueError(f"not a machine of format {FORMAT}")
    numbers = {"generation", "cores", "memory_mib", "disk_gib"}
    for name, value in fields.items():
        wanted = int if name in numbers else dict if name == "options" else str
        if type(value) is not wanted:
            raise ValueError(f"{name} is not what it should be")
    if not all(isinstance(value, str) for value in fields.get("options", {}).values()):
        raise ValueError("options are texts")
    try:
        return Machine(**fields)
    except TypeError as error:
        raise ValueError(str(error)) from error
