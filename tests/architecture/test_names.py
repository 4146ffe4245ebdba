"""Names: ours resolve to us, and a file's name says what is in it."""

import ast
import re
from importlib.metadata import distribution, packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.architecture.tree import PACKAGES, ROOT, kept_files, sources

SAYS_NOTHING = re.compile(r"(^|[_.-])(utils?|misc|common|helpers?|stuff|various)([_.-]|$)", re.IGNORECASE)


@pytest.mark.parametrize("package", PACKAGES)
def test_our_names_resolve_to_us(package: str) -> None:
    owners = packages_distributions().get(package, [])
    assert set(owners) == {"bucketworks"}, f"{package} is claimed by {owners}; is the project installed? (make venv)"
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin == str(ROOT / package / "__init__.py")


def test_no_dependency_takes_one_of_our_names() -> None:
    for name in ("requirements.txt", "requirements-dev.txt"):
        pinned = re.findall(r"^([A-Za-z0-9._-]+)==", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
        assert len(pinned) > 20
        assert not set(pinned) & set(PACKAGES)


def test_no_file_is_named_after_nothing() -> None:
    named = [str(path.relative_to(ROOT)) for path in kept_files() if SAYS_NOTHING.search(path.name)]
    assert named == []


@pytest.mark.parametrize("path", [path for path in sources() if path.name == "__init__.py"], ids=str)
def test_a_package_is_a_docstring_that_imports_nothing(path: Path) -> None:
    module = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(module), f"{path} does not say what the package is"
    assert len(module.body) == 1, f"{path} holds more than its docstring"


def test_every_module_says_what_it_is() -> None:
    silent = [str(p.relative_to(ROOT)) for p in sources() if not ast.get_docstring(ast.parse(p.read_text("utf-8")))]
    assert silent == []


def test_the_only_doors_are_console_scripts() -> None:
    points = distribution("bucketworks").entry_points
    scripts = {point.name: point.value for point in points.select(group="console_scripts")}
    assert scripts
    for name, value in scripts.items():
        module, _, function = value.partition(":")
        spec = find_spec(module)
        assert spec is not None, f"{name} starts {module}, which is not there"
        assert function == "main"
