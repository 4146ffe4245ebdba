"""Browser code of others: only the pinned bytes are put in place, and nobody is asked when they are there."""

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from envctl.web import assets
from envctl.web.assets import AssetsError, Package, digest_of, integrity_of, provide

FILES = {"dist/a.js": b"one()", "core/deep/b.js": b"two()", "LICENSE": b"words", "README.md": b"not wanted"}
WANTED = {path: FILES[path] for path in ("dist/a.js", "core/deep/b.js", "LICENSE")}


def tarball(directory: Path, files: dict[str, bytes], top: str = "package/") -> Path:
    path = directory / "package.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(top + name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def package(path: Path) -> Package:
    return Package(
        "thing",
        "1.0.0",
        integrity_of(path.read_bytes()),
        "thing",
        ("dist/a.js", "core/*", "LICENSE"),
        digest_of(WANTED),
    )


def test_wanted_files_are_put_in_place_once(tmp_path: Path) -> None:
    made = tarball(tmp_path, FILES)
    wanted, asked = package(made), list[str]()

    def fetched(one: Package, directory: Path) -> Path:
        asked.append(one.name)
        return made

    vendor = tmp_path / "vendor"
    (vendor / ".new-left").mkdir(parents=True)
    (vendor / "gone-from-the-list").mkdir()
    assert provide([wanted], vendor, fetched) == 1
    assert assets.unpacked(vendor / "thing") == WANTED
    assert sorted(entry.name for entry in vendor.iterdir()) == ["thing"], "what a kill left behind is gone"
    assert provide([wanted], vendor, fetched) == 0
    assert asked == ["thing"]
    (vendor / "thing" / "dist" / "a.js").write_bytes(b"evil()")
    assert provide([wanted], vendor, fetched) == 1, "a changed file is put right"
    assert assets.unpacked(vendor / "thing") == WANTED


def test_another_package_is_not_used(tmp_path: Path) -> None:
    made = tarball(tmp_path, FILES)
    wanted = replace(package(made), integrity=integrity_of(b"something else"))
    with pytest.raises(AssetsError, match="do not use it"):
        provide([wanted], tmp_path / "vendor", lambda one, directory: made)
    wanted = replace(package(made), digest="0" * 64)
    with pytest.raises(AssetsError, match="digest"):
        provide([wanted], tmp_path / "vendor", lambda one, directory: made)
    assert list((tmp_path / "vendor").iterdir()) == []


def test_a_path_that_leaves_the_directory_is_refused(tmp_path: Path) -> None:
    made = tarball(tmp_path, {"core/../../../evil.js": b"x"})
    with pytest.raises(AssetsError, match="evil"):
        provide([package(made)], tmp_path / "vendor", lambda one, directory: made)


def test_the_list_is_what_the_pages_use() -> None:
    listed = assets.packages(assets.LIST.read_text(encoding="utf-8"))
    assert {one.name for one in listed} == {"htmx.org", "@novnc/novnc", "@xterm/xterm", "@xterm/addon-fit"}
    assert all("://" not in line for line in assets.LIST.read_text().splitlines()), "which registry is npm's business"
    for one in listed:
        assert any("LICENSE" in pattern for pattern in one.files), "licences go along"


def test_what_is_in_place_is_what_is_pinned() -> None:
    if not assets.VENDOR.is_dir():
        pytest.skip("browser code was not fetched: make assets")
    assert assets.missing_files() == [], "python -m envctl.web.assets puts them in place"
