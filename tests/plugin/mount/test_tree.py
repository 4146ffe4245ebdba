"""What is shown, out of catalogue rows and names being written."""

from plugin.catalogue import Entry
from plugin.mount import tree


def test_the_directories_are_those_of_proxmox_ve() -> None:
    assert tree.folders("") == ["dump", "import", "snippets", "template"]
    assert tree.folders("template") == ["cache", "iso"]
    assert tree.folders("dump") == []


def test_names_are_objects_and_files_on_their_way_of_that_directory_alone() -> None:
    rows = [Entry(f"p/{key}", 1, 1, "e", 0.0) for key in ("dump/a", "dump/a.notes", "dump/sub/b", "dumpster/c")]
    assert tree.names("dump", "p/", rows, ["dump/d.dat", "import/e"]) == ["a", "a.notes", "d.dat"]


def test_snippets_can_be_run_and_nothing_else() -> None:
    assert tree.file("snippets/hook.pl", 3, 0.0).mode & 0o111
    assert not tree.file("dump/a", 3, 0.0).mode & 0o111


def test_free_space_is_the_quota_or_nearly_endless() -> None:
    assert tree.space(30, 100) == tree.Space(100, 70)
    assert tree.space(130, 100) == tree.Space(100, 0)
    assert tree.space(30, 0) == tree.Space(30 + tree.UNLIMITED_BYTES, tree.UNLIMITED_BYTES)
