#!/usr/bin/env python3
"""`make deb`: dist/bucketworks-pve_VERSION_amd64.deb, the package for a Proxmox VE node.

One package for PVE 8.4 (Debian 12, Python 3.11) and PVE 9 (Debian 13, Python 3.13): our modules and pure ones once, compiled
ones for each Python, all of the versions and with the hashes in requirements.txt. `layout` says what is where.

One rule: the same tree makes the same bytes. Times are SOURCE_DATE_EPOCH (that of the last commit), names are sorted,
owners are root, and nothing is compiled here: the node's own Python does that (postinst).

    deploy/debian/make_deb.py [--output DIRECTORY] [--version VERSION] [--wheels DIRECTORY]
"""

import argparse
import contextlib
import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PACKAGE = "bucketworks-pve"
PYTHONS = ("3.11", "3.13")
PLATFORMS = ("manylinux_2_34_x86_64", "manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "any")
"""From the oldest Debian on: 12 has glibc 2.36, and pip wants each tag named."""
OURS = ("s3core", "integrity", "blockdev", "cowsync", "plugin")
COMMANDS = ("pve-s3", "pve-s3-backup", "pve-s3-restore", "pve-s3-maintenance", "s3block", "bucketworks")
"""Of [project.scripts]; `bucketworks` writes the endpoints that `s3block` knows."""
LEFT_OUT = {
    "setuptools": "it builds, and is not imported",
    "fastapi": "for servers that a node does not run: s3integrity's",
    "starlette": "of fastapi",
    "opentelemetry-api": "of fastapi",
    "anyio": "of starlette",
    "idna": "of anyio",
    "uvicorn": "as fastapi",
    "h11": "of uvicorn",
    **dict.fromkeys(
        ("alembic", "argon2-cffi", "argon2-cffi-bindings", "httpx", "jinja2", "pyotp", "python-multipart"),
        "for the console's server: s3-envctl's",
    ),
    **dict.fromkeys(
        ("joserfc", "segno", "sqlalchemy", "tzdata", "websockets"), "for the console's server: s3-envctl's"
    ),
    **dict.fromkeys(("mako", "markupsafe", "httpcore", "certifi"), "of those"),
}
SERVICES = ("s3", "sts")
"""botocore describes every service of Amazon's, in 25 MB."""
HOME = "usr/lib/bucketworks"
UNITS = ("bucketworks-*",)
FALLBACK_EPOCH = 1_767_225_600
"""2026-01-01, where neither the environment nor git knows when."""


class PackageFailed(RuntimeError):
    """The package could not be made; the message is for whoever ran this."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="where the package goes (dist)")
    parser.add_argument("--version", default="", help="its version (that of pyproject.toml)")
    parser.add_argument(
        "--wheels", type=Path, default=ROOT / "build" / "deb", help="where modules are kept (build/deb)"
    )
    options = parser.parse_args(arguments)
    try:
        sys.stdout.write(f"{make(options.output, options.version, options.wheels)}\n")
    except PackageFailed as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def make(output: Path, version: str, wheels: Path) -> Path:
    """The package's file, in `output`, in place of one of the same name. `wheels` keeps what was downloaded, by the hash of
    what it was made from. PackageFailed with the output of what failed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = version or str(project["version"])
    modules = download(wheels)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="deb-") as name:
        tree = Path(name) / "tree"
        layout(tree, project, version, modules)
        control(tree, version)
        made = Path(name) / "made.deb"
        run(
            *("dpkg-deb", "--root-owner-group", "--threads-max=1", "-Zzstd", "-z6", "--build", str(tree), str(made)),
            SOURCE_DATE_EPOCH=str(epoch()),
        )
        package = output / f"{PACKAGE}_{version}_amd64.deb"
        shutil.copyfile(made, package.with_suffix(".new"))
        package.with_suffix(".new").replace(package)
    return package


def requirements() -> str:
    """requirements.txt, without what a node does not need."""
    kept, keep = [], True
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines(keepends=True):
        if named := re.match(r"([A-Za-z0-9._-]+)==", line):
            keep = named[1] not in LEFT_OUT
        if keep:
            kept.append(line)
    return "".join(kept)


def download(cache: Path) -> Path:
    """A directory with `python3` (pure modules) and one of compiled ones for each of PYTHONS, from the package index with the
    hashes that are required. A build that dies leaves nothing under its name."""
    wanted = requirements()
    key = hashlib.sha256(repr((wanted, PYTHONS, PLATFORMS, SERVICES, Path(__file__).read_bytes())).encode())
    entry = cache / f"modules-{key.hexdigest()[:16]}"
    if entry.is_dir():
        return entry
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="building-", dir=cache) as name:
        under_way = Path(name) / "modules"
        under_way.mkdir()
        (Path(name) / "requirements.txt").write_text(wanted, encoding="utf-8")
        for python in PYTHONS:
            folder = under_way / f"python{python}"
            platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
            run(
                *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "-qq"),
                *("--no-compile", "--require-hashes", "--no-deps", "--only-binary=:all:", "--target", str(folder)),
                *("--python-version", python, *platforms, "-r", str(Path(name) / "requirements.txt")),
            )
            shutil.rmtree(folder / "bin", ignore_errors=True)
            take_out_pure(folder, under_way / "python3")
        describe_only(under_way / "python3")
        with contextlib.suppress(FileExistsError):
            under_way.rename(entry)
    return entry


def take_out_pure(folder: Path, pure: Path) -> None:
    """Move the distributions without compiled code from `folder` to `pure`: they are the same for every Python."""
    for info in sorted(folder.glob("*.dist-info")):
        if "Root-Is-Purelib: true" not in (info / "WHEEL").read_text(encoding="utf-8"):
            continue
        for line in (info / "RECORD").read_text(encoding="utf-8").splitlines():
            name = line.split(",")[0].strip('"')
            file = folder / name
            if name.startswith("..") or not file.is_file():  # a script, or a file of pip's
                continue
            target = pure / name
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
        shutil.rmtree(info, ignore_errors=True)
    for directory in sorted((one for one in folder.rglob("*") if one.is_dir()), reverse=True):
        if not any(directory.iterdir()):
            directory.rmdir()


def describe_only(pure: Path) -> None:
    """Leave out what describes services that are never called."""
    for data in (pure / "botocore" / "data", pure / "boto3" / "data"):
        for service in sorted(data.iterdir()):
            if service.is_dir() and service.name not in SERVICES:
                shutil.rmtree(service)


def layout(tree: Path, project: dict[str, object], version: str, modules: Path) -> None:
    """Everything but DEBIAN/, below `tree`."""
    home = tree / HOME
    shipped = home / "shipped"
    shutil.copytree(modules, shipped)
    for package in OURS:
        ignored = shutil.ignore_patterns("__pycache__", "perl")
        shutil.copytree(ROOT / package, shipped / "python3" / package, ignore=ignored)
    info = shipped / "python3" / f"bucketworks-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: bucketworks\nVersion: {version}\n", encoding="utf-8")
    put(HERE / "start.py", home / "start.py")

    scripts = project["scripts"]
    assert isinstance(scripts, dict)
    for command in COMMANDS:
        if command in scripts:
            module, _, function = scripts[command].partition(":")
            file = tree / "usr/bin" / command
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(
                "#!/usr/bin/python3 -IB\n# SPDX-License-Identifier: AGPL-3.0-or-later\nimport sys\n\n"
                f'sys.path.insert(0, "/{HOME}")\nfrom start import start  # noqa: E402\n\nstart("{module}", "{function}")\n',
                encoding="utf-8",
            )
            file.chmod(0o755)

    perl = ROOT / "plugin" / "perl"
    for file in sorted((perl / "PVE").rglob("*.pm")):
        put(file, tree / "usr/share/perl5" / file.relative_to(perl))
    for pattern in UNITS:
        for file in sorted((ROOT / "deploy/systemd").glob(pattern)):
            put(file, tree / "usr/lib/systemd/system" / file.name)
    put(HERE / "tmpfiles", tree / "usr/lib/tmpfiles.d" / f"{PACKAGE}.conf")
    documents = tree / "usr/share/doc" / PACKAGE
    put(HERE / "copyright", documents / "copyright")
    put(ROOT / "CHANGELOG.md", documents / "CHANGELOG.md")
    put(ROOT / "deploy/config.example.toml", documents / "examples/config.toml")
    for file in sorted((ROOT / "docs/plugin").glob("*.md")):
        put(file, documents / "plugin" / file.name)
    if (ROOT / "docs/plugin.md").exists():
        put(ROOT / "docs/plugin.md", documents / "plugin.md")

    for one in tree.rglob("*"):  # what an index or a checkout gave as modes is its affair
        if not one.is_symlink():
            executable = one.is_dir() or one.parent == tree / "usr/bin"
            one.chmod(0o755 if executable else 0o644)
    (shipped / "BUILD").write_text(f"{version}-{digest(home)[:12]}\n", encoding="ascii")
    (shipped / "BUILD").chmod(0o644)


def control(tree: Path, version: str) -> None:
    """DEBIAN/: what dpkg reads and runs."""
    folder = tree / "DEBIAN"
    folder.mkdir()
    folder.chmod(0o755)
    files = [one for one in sorted(tree.rglob("*")) if one.is_file() and folder not in one.parents]
    size = sum(-(-one.stat().st_size // 1024) for one in files)
    text = (HERE / "control").read_text(encoding="utf-8")
    (folder / "control").write_text(
        text.replace("@VERSION@", version).replace("@SIZE_KIB@", str(size)), encoding="utf-8"
    )
    # Of no use against an attacker: dpkg --verify finds what a disk or a hand has changed.
    sums = [
        f"{hashlib.md5(one.read_bytes(), usedforsecurity=False).hexdigest()}  {one.relative_to(tree)}" for one in files
    ]
    (folder / "md5sums").write_text("\n".join(sums) + "\n", encoding="utf-8")
    put(HERE / "triggers", folder / "triggers")
    for script in ("postinst", "prerm", "postrm"):
        put(HERE / script, folder / script)
        (folder / script).chmod(0o755)


def put(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def digest(folder: Path) -> str:
    """Of names, modes and contents of every file below `folder`."""
    total = hashlib.sha256()
    for file in sorted_files(folder):
        name, mode = file.relative_to(folder), stat.S_IMODE(file.stat().st_mode)
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        total.update(f"{name} {mode:o} {content}\n".encode())
    return total.hexdigest()


def sorted_files(folder: Path) -> Iterator[Path]:
    yield from sorted(one for one in folder.rglob("*") if one.is_file())


def epoch() -> int:
    """The time that every file of the package has, in Unix seconds."""
    if named := os.environ.get("SOURCE_DATE_EPOCH", ""):
        return int(named)
    words = ("git", "-C", str(ROOT), "log", "-1", "--format=%ct")
    try:
        return int(subprocess.run(words, capture_output=True, check=True, text=True).stdout)
    except (OSError, subprocess.CalledProcessError, ValueError):
        return FALLBACK_EPOCH


def run(*command: str, **variables: str) -> None:
    done = subprocess.run(
        command,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode:
        raise PackageFailed(
            f"{command[0]} ended with {done.returncode}:\n{done.stdout.decode(errors='replace')[-3000:]}"
        )


if __name__ == "__main__":
    sys.exit(main())
