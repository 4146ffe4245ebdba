"""What is drawn from tables is current, and what documents point at is there."""

import re
import tomllib
from pathlib import Path

import pytest

from s3core.endpoint import PRESETS
from s3core.exit_codes import ExitCode
from s3core.settings import EndpointSettings, parse_config
from s3core.settings_table import settings_table
from tests.architecture.documents import DOCUMENTS
from tests.architecture.tree import ROOT, kept_files

LINK = re.compile(r"\[[^\]]*\]\(([^)#:\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_drawn_documents_are_current(name: str) -> None:
    written = (ROOT / name).read_text(encoding="utf-8")
    assert written == DOCUMENTS[name](), f"{name} is not what the code says; run `make docs`"


def test_the_documents_say_something() -> None:
    settings = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    assert all(f"| `{row.name}` |" in settings for row in settings_table())
    codes = (ROOT / "docs/exit-codes.md").read_text(encoding="utf-8")
    assert all(f"| {code.value} |" in codes for code in ExitCode)


def test_presets_are_the_same_in_settings_and_endpoints() -> None:
    annotation = EndpointSettings.model_fields["preset"].annotation
    assert getattr(annotation, "__args__", ()) == tuple(PRESETS)


def test_the_example_configuration_is_valid() -> None:
    text = (ROOT / "deploy/config.example.toml").read_text(encoding="utf-8")
    assert parse_config(text).volumes
    # The lines that are commented out are examples too.
    shown = re.sub(r"^# ?(?=[a-z_]+ = |\[)", "", text, flags=re.MULTILINE)
    assert len(tomllib.loads(shown)["endpoint"]) >= len(tomllib.loads(text)["endpoint"])
    parse_config(shown)


@pytest.mark.parametrize("path", [p for p in kept_files() if p.suffix == ".md"], ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    missing = [link for link in LINK.findall(path.read_text(encoding="utf-8")) if not (path.parent / link).exists()]
    assert missing == []
