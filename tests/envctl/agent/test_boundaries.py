"""What the agent may be made of: syntax of Python 3.9, modules of its standard library, and nothing else of ours."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import envctl.agent

SOURCES = sorted(Path(envctl.agent.__file__).parent.glob("*.py"))
NEWER = {"tomllib", "compression", "annotationlib", "_zstd"}


def test_the_syntax_is_that_of_python_3_9() -> None:
    assert SOURCES
    for source in SOURCES:
        tree = ast.parse(source.read_text(), source.name, feature_version=(3, 9))
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.Match)], source
        first = next((node for node in tree.body if isinstance(node, ast.ImportFrom)), None)
        if any(isinstance(node, (ast.AnnAssign, ast.arg)) for node in ast.walk(tree)):
            assert first is not None, source
            assert (first.module, first.names[0].name) == ("__future__", "annotations"), source


def test_it_imports_the_standard_library_and_itself() -> None:
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            modules = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            for module in modules:
                top = module.split(".")[0]
                ours = module == "envctl.agent" or module.startswith("envctl.agent.")
                assert ours or (top in sys.stdlib_module_names and top not in NEWER), f"{source.name}: {module}"


def test_calls_that_came_after_python_3_9_are_not_used() -> None:
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Call):
                words = {keyword.arg for keyword in node.keywords}
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                assert not (name == "zip" and "strict" in words), source
                assert not (name == "dataclass" and words & {"slots", "kw_only"}), source
                assert name not in {"pairwise", "file_digest", "chdir_context", "aclosing", "bit_count"}, source
