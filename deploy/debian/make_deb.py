#!/usr/bin/env python3
"""`make deb`: the three Debian packages, in dist/.

`bucketworks` is the suite: all commands, their modules and units. `bucketworks-pve` is what makes it a storage of Proxmox VE.
`bucketworks-agent` is for the machines that the console makes. One build is for Debian 12 (Python 3.11) and 13 (Python 3.13):
our modules and pure ones once, compiled ones for each Python, all with the versions and hashes of the requirements files.

One rule: the same tree makes the same bytes. Times are SOURCE_DATE_EPOCH (that of the last commit), names are sorted,
owners are root, and nothing is compiled here: the host's own Python does that (postinst).

    deploy/debian/make_deb.py [--output DIRECTORY] [--version VERSION] [--wheels DIRECTORY]
"""

import argparse
import gzip
import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

SUITE, NODE, AGENT = "bucketworks", "bucketworks-pve", "bucketworks-agent"
ARCHITECTURES = {SUITE: "amd64", NODE: "all", AGENT: "all"}
PYTHONS = ("3.11", "3.13")
PLATFORMS = ("manylinux_2_34_x86_64", "manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "any")
"""From the oldest Debian on: 12 has glibc 2.36, and pip wants each tag named."""
OURS = ("s3core", "integrity", "blockdev", "cowsync", "plugin", "envctl")
LEFT_OUT = {"setuptools": "it builds, and is not imported", "colorama": "for another system"}
CARRIED_EXTRAS = {
    **dict.fromkeys(("rtslib-fb", "configshell-fb", "pyparsing", "pyudev"), "lio: a volume behind the kernel's target"),
    **dict.fromkeys(("psycopg", "psycopg-binary"), "postgresql: a console of several processes"),
    "rfc3161-client": "anchor: a ledger that a time stamp authority signs",
}
"""Of requirements-dev.txt, which pins them. The other extras (pyarrow, duckdb, distributed) are twice the size of all this: who
wants one gives it to Debian's Python, whose modules are looked for after ours (docs/install.md)."""
SERVICES = ("s3", "sts")
"""botocore describes every service of Amazon's, in 25 MB."""
HOME = "usr/lib/bucketworks"
NODE_UNITS = re.compile(r"bucketworks-(pve|disk@|gateway@|mount@)\.")
"""Of deploy/systemd; the suite has the others."""
KEPT_RUNNING = ("s3block@", "s3block-lio@", "s3block-initiator@")
"""Templates whose instances a removal refuses to stop."""
UNIT_KINDS = (".service", ".socket", ".timer", ".target", ".path", ".slice", ".mount")
AGENT_FILE = "usr/lib/envctl/envctl-agent.pyz"
AGENT_MADE_BY_CONSOLE = (
    "# A seed, an identity, or the address of a seed: else no console has made this machine, and no home will come.\n"
    "ExecCondition=/bin/sh -c 'test -e /etc/envctl/seed.json || test -e /var/lib/envctl-agent/identity.json ||"
    ' grep -qs "^ds=nocloud.*;s=" /sys/class/dmi/id/product_serial\'\n'
)
AGENT_ENROLLED = "ConditionPathExists=/var/lib/envctl-agent/identity.json\n"
FALLBACK_EPOCH = 1_767_225_600
"""2026-01-01, where neither the environment nor git knows when."""


class PackageFailed(RuntimeError):
    """A package could not be made; the message is for whoever ran this."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="where the packages go (dist)")
    parser.add_argument("--version", default="", help="their version (that of pyproject.toml)")
    parser.add_argument(
        "--wheels", type=Path, default=ROOT / "build" / "deb", help="where modules are kept (build/deb)"
    )
    options = parser.parse_args(arguments)
    try:
        for package in make(options.output, options.version, options.wheels):
            sys.stdout.write(f"{package}\n")
    except PackageFailed as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def make(output: Path, version: str, wheels: Path) -> list[Path]:
    """The packages' files, in `output`, in place of ones of the same name. `wheels` keeps what was downloaded, by the hash of
    what it was made from. PackageFailed with the output of what failed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = version or str(project["version"])
    modules = download(wheels)
    output.mkdir(parents=True, exist_ok=True)
    layouts: dict[str, Callable[[Path], None]] = {
        SUITE: lambda tree: lay_out_suite(tree, project, version, modules),
        NODE: lay_out_node,
        AGENT: lay_out_agent,
    }
    return [build(package, version, layouts[package], output) for package in layouts]


def build(package: str, version: str, layout: Callable[[Path], None], output: Path) -> Path:
    with tempfile.TemporaryDirectory(prefix="deb-") as name:
        tree = Path(name) / "tree"
        tree.mkdir()
        layout(tree)
        documents(tree, package, version)
        settle_modes(tree)
        if package == SUITE:
            name_build(tree / HOME, version)
        control(tree, package, version)
        made = Path(name) / "made.deb"
        run(
            *("dpkg-deb", "--root-owner-group", "--threads-max=1", "-Zzstd", "-z6", "--build", str(tree), str(made)),
            SOURCE_DATE_EPOCH=str(epoch()),
        )
        file = output / f"{package}_{version}_{ARCHITECTURES[package]}.deb"
        shutil.copyfile(made, file.with_suffix(".new"))
        file.with_suffix(".new").replace(file)
    return file


# --- modules of others


def requirements() -> str:
    """requirements.txt, and of requirements-dev.txt what CARRIED_EXTRAS says, without what no host needs."""
    kept: dict[str, str] = {}
    for file, wanted in (("requirements.txt", None), ("requirements-dev.txt", CARRIED_EXTRAS)):
        name = ""
        for line in (ROOT / file).read_text(encoding="utf-8").splitlines(keepends=True):
            if named := re.match(r"([A-Za-z0-9._-]+)==", line):
                name = named[1] if named[1] not in kept and (wanted is None or named[1] in wanted) else ""
                if name:
                    kept[name] = ""
            if name:
                kept[name] += line
    if missing := [name for name in CARRIED_EXTRAS if name not in kept]:
        raise PackageFailed(f"requirements-dev.txt does not pin {', '.join(missing)}")
    return "".join(text for name, text in kept.items() if name not in LEFT_OUT)


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
        try:
            under_way.rename(entry)
        except OSError:
            # Somebody else's build was there first: a directory that is not empty is not written over.
            if not entry.is_dir():
                raise
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


# --- what is where


def lay_out_suite(tree: Path, project: Mapping[str, Any], version: str, modules: Path) -> None:
    shipped = tree / HOME / "shipped"
    shutil.copytree(modules, shipped)
    for package in OURS:
        ignored = shutil.ignore_patterns("__pycache__", "perl", ".gitignore")
        shutil.copytree(ROOT / package, shipped / "python3" / package, ignore=ignored)
    if not (ROOT / "envctl/web/static/vendor").is_dir():
        sys.stderr.write(
            "warning: without browser code (`make assets`) the console's pages have no screens, terminals or live lists\n"
        )
    # What asks for our version, and for what our packages contribute to each other, asks the distribution.
    info = shipped / "python3" / f"bucketworks-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: bucketworks\nVersion: {version}\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(entry_points(project), encoding="utf-8")
    put(HERE / "start.py", tree / HOME / "start.py")
    put(HERE / "builds.sh", tree / HOME / "builds.sh")
    for command, place in sorted(project["scripts"].items()):
        module, _, function = place.partition(":")
        write(
            tree / "usr/bin" / command,
            "#!/usr/bin/python3 -IB\n# SPDX-License-Identifier: AGPL-3.0-or-later\nimport sys\n\n"
            f'sys.path.insert(0, "/{HOME}")\nfrom start import start  # noqa: E402\n\nstart("{module}", "{function}")\n',
        )
    for unit in units(SUITE):
        put(unit, tree / "usr/lib/systemd/system" / unit.name)
    for folder in ("tmpfiles.d", "sysusers.d"):
        put(ROOT / "deploy/systemd" / folder / "bucketworks.conf", tree / "usr/lib" / folder / "bucketworks.conf")
    manuals(tree)

    shared = tree / "usr/share/bucketworks"
    for file in sorted((ROOT / "deploy").glob("prometheus*.yml")):
        put(file, shared / file.name)
    for folder in ("grafana", "examples"):
        if (ROOT / "deploy" / folder).is_dir():
            shutil.copytree(
                ROOT / "deploy" / folder, shared / folder, ignore=shutil.ignore_patterns("__pycache__", "*.py")
            )
    put(ROOT / "deploy/config.example.toml", shared / "examples/config.toml")
    # The runbook is read when nothing works: on the host itself.
    book = tree / "usr/share/doc" / SUITE / "docs"
    for file in sorted((ROOT / "docs").rglob("*.md")):
        put(file, book / file.relative_to(ROOT / "docs"))


def lay_out_node(tree: Path) -> None:
    perl = ROOT / "plugin" / "perl"
    for file in sorted((perl / "PVE").rglob("*.pm")):
        put(file, tree / "usr/share/perl5" / file.relative_to(perl))
    for unit in units(NODE):
        put(unit, tree / "usr/lib/systemd/system" / unit.name)


def lay_out_agent(tree: Path) -> None:
    from envctl.agent import install
    from envctl.homes.agent_file import agent_file

    place = tree / AGENT_FILE
    place.parent.mkdir(parents=True)
    place.write_bytes(agent_file())
    (tree / "usr/bin").mkdir()
    (tree / "usr/bin/envctl-agent").symlink_to(f"../lib/{AGENT_FILE.removeprefix('usr/lib/')}")
    for path, content in sorted(install.files().items()):
        text = content.decode("utf-8").replace(install.AGENT_FILE, f"/{AGENT_FILE}")
        name = path.removeprefix(install.UNITS_FOLDER + "/")
        if name == "envctl-restore.service":
            text = text.replace("[Service]\n", "[Service]\n" + AGENT_MADE_BY_CONSOLE)
        elif name in install.UNITS:
            text = text.replace("[Unit]\n", "[Unit]\n" + AGENT_ENROLLED, 1)
        write(tree / "usr/lib/systemd/system" / name, text)


def units(package: str) -> list[Path]:
    """Of deploy/systemd."""
    found = sorted(one for one in (ROOT / "deploy/systemd").iterdir() if one.suffix in UNIT_KINDS)
    return [one for one in found if (NODE_UNITS.match(one.name) is not None) == (package == NODE)]


def entry_points(project: Mapping[str, Any]) -> str:
    groups = {"console_scripts": project["scripts"], **project.get("entry-points", {})}
    return "\n".join(
        f"[{group}]\n" + "".join(f"{name} = {place}\n" for name, place in sorted(places.items()))
        for group, places in sorted(groups.items())
    )


def manuals(tree: Path) -> None:
    """Manual pages and completions, drawn from the commands themselves."""
    words = (str(ROOT / "deploy/manuals.py"), "--gzip", "--output", str(tree / "usr/share"))
    run(sys.executable, *words, PYTHONPATH=str(ROOT), SOURCE_DATE_EPOCH=str(epoch()))


def documents(tree: Path, package: str, version: str) -> None:
    """What Debian wants each package to have."""
    folder = tree / "usr/share/doc" / package
    put(HERE / "copyright", folder / "copyright")
    when = format_datetime(datetime.fromtimestamp(epoch(), UTC))
    text = (
        f"bucketworks ({version}) unstable; urgency=medium\n\n  * CHANGELOG.md says what has changed.\n\n"
        f" -- Bucketworks <packages@bucketworks.internal>  {when}\n"
    )
    (folder / "changelog.gz").write_bytes(gzip.compress(text.encode("utf-8"), 9, mtime=0))
    if package == SUITE:
        put(ROOT / "CHANGELOG.md", folder / "CHANGELOG.md")
    if (overrides := HERE / package / "overrides").exists():
        put(overrides, tree / "usr/share/lintian/overrides" / package)


def settle_modes(tree: Path) -> None:
    """What an index or a checkout gave as modes is its affair."""
    for one in tree.rglob("*"):
        if not one.is_symlink():
            executable = one.is_dir() or one.parent == tree / "usr/bin" or one == tree / AGENT_FILE
            one.chmod(0o755 if executable else 0o644)


def name_build(home: Path, version: str) -> None:
    (home / "shipped/BUILD").write_text(f"{version}-{digest(home)[:12]}\n", encoding="ascii")
    (home / "shipped/BUILD").chmod(0o644)


def control(tree: Path, package: str, version: str) -> None:
    """DEBIAN/: what dpkg reads and runs."""
    source = HERE / package
    folder = tree / "DEBIAN"
    folder.mkdir()
    folder.chmod(0o755)
    files = [one for one in sorted_files(tree) if folder not in one.parents and not one.is_symlink()]
    values = {"@VERSION@": version, "@SIZE_KIB@": str(sum(-(-one.stat().st_size // 1024) for one in files))}
    values |= unit_names(tree)
    # Of no use against an attacker: dpkg --verify finds what a disk or a hand has changed.
    sums = [
        f"{hashlib.md5(one.read_bytes(), usedforsecurity=False).hexdigest()}  {one.relative_to(tree)}" for one in files
    ]
    (folder / "md5sums").write_text("\n".join(sums) + "\n", encoding="utf-8")
    for name in ("control", "triggers", "postinst", "prerm", "postrm"):
        if (source / name).exists():
            text = (source / name).read_text(encoding="utf-8")
            for word, value in values.items():
                text = text.replace(word, value)
            write(folder / name, text)
            (folder / name).chmod(0o755 if text.startswith("#!") else 0o644)


def unit_names(tree: Path) -> dict[str, str]:
    """For the scripts: the units that `systemctl enable` knows, the templates, and what a removal stops."""
    found = sorted(one for one in (tree / "usr/lib/systemd/system").iterdir() if one.is_file())
    plain = [one for one in found if "@." not in one.name]
    templates = [one.name.partition("@")[0] for one in found if "@." in one.name]
    stopped = [one.name.replace("@.", "@*.") for one in found if not one.name.startswith(KEPT_RUNNING)]
    return {
        "@INSTALLABLE_UNITS@": " ".join(
            one.name for one in plain if "\n[Install]\n" in one.read_text(encoding="utf-8")
        ),
        "@TEMPLATES@": " ".join(sorted(set(templates))),
        "@STOPPED_UNITS@": " ".join(f"'{one}'" for one in stopped),
    }


def write(target: Path, text: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")


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
