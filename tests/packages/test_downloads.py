"""What the packages are made from is downloaded once for a tree, by whichever build comes first."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from tests.architecture.tree import ROOT


@pytest.fixture
def make_deb() -> ModuleType:
    """The script; it is no module of a package."""
    spec = spec_from_file_location("make_deb", ROOT / "deploy/debian/make_deb.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_build_that_comes_second_takes_what_the_first_has_made(
    make_deb: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pip(*words: str) -> None:
        Path(words[words.index("--target") + 1]).mkdir()

    monkeypatch.setattr(make_deb, "run", pip)
    monkeypatch.setattr(make_deb, "describe_only", lambda _: None)
    name = make_deb.download(tmp_path / "alone").name
    first = tmp_path / "together" / name

    def pip_beside_another(*words: str) -> None:
        (first / "python3").mkdir(parents=True, exist_ok=True)
        pip(*words)

    monkeypatch.setattr(make_deb, "run", pip_beside_another)
    assert make_deb.download(first.parent) == first
    assert list(first.parent.iterdir()) == [first]
    assert [one.name for one in first.iterdir()] == ["python3"]
