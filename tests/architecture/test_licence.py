"""The licence: its text is whole, and every place that names it says the same."""

import re
import tomllib
from importlib.metadata import metadata

from tests.architecture.tree import ROOT


def test_the_text_is_whole() -> None:
    lines = (ROOT / "LICENSE").read_text(encoding="utf-8").splitlines()
    assert [line.strip() for line in lines[:2]] == [
        "GNU AFFERO GENERAL PUBLIC LICENSE",
        "Version 3, 19 November 2007",
    ]
    assert len(lines) == 661
    text = "\n".join(lines)
    assert all(f"\n  {section}. " in text for section in range(18))
    assert "13. Remote Network Interaction" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_metadata_names_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["license"] == "AGPL-3.0-or-later"
    assert project["license-files"] == ["LICENSE"]
    assert metadata("bucketworks")["License-Expression"] == "AGPL-3.0-or-later"


def test_what_is_installed_is_pinned_by_hash_and_names_no_source() -> None:
    for name in sorted(file.name for file in ROOT.glob("requirements*.txt")):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert not re.search(r"https?://|--index-url|--find-links|--extra-index|/", text.replace("\\\n", ""))
        for requirement in re.split(r"\n(?=\S)", text.strip()):
            assert "==" in requirement
            assert "--hash=sha256:" in requirement, f"{requirement.splitlines()[0]} has no hash"


def test_runtime_pins_are_the_tested_ones() -> None:
    runtime, tested = (
        dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE))
        for name in ("requirements.txt", "requirements-dev.txt")
    )
    assert {name: tested.get(name) for name in runtime} == runtime
