"""A machine as an administrator would make a template of it: Debian with systemd, Python, a login user, and the agent inside.

One rule: what is slow to make is made once. The system is an entry of the cache (`tests.guest.image`); a test run copies it and
puts the agent of this working tree in, without mounting anything (debugfs). It boots without firmware: the kernel lies beside
it, and the root file system is the whole disk.
"""

import hashlib
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.guest import image

LOGIN_USER = "user"
KERNEL_ARGUMENTS = (
    # As for the other guests: the clock is not the TSC, whose rate is measured wrong on a busy host.
    "root=/dev/nvme0n1 rw console=ttyS0 loglevel=3 panic=-1 mitigations=off tsc=unstable clocksource=hpet audit=0 apparmor=0"
    " systemd.show_status=0"
)
_PACKAGES = (
    *(
        "python3",
        "systemd",
        "systemd-sysv",
        "libpam-systemd",
        "dbus",
        "udev",
        "kmod",
        "iproute2",
        "procps",
        "util-linux",
    ),
    *("acl", "attr", "libcap2-bin", "e2fsprogs"),
)
_CLOUD_PACKAGES = (*_PACKAGES, "cloud-init", "sudo")
_NOT_STARTED = (
    *(
        "e2scrub_reap.service",
        "e2scrub_all.timer",
        "apt-daily.timer",
        "apt-daily-upgrade.timer",
        "dpkg-db-backup.timer",
    ),
    *("fstrim.timer", "systemd-binfmt.service", "proc-sys-fs-binfmt_misc.automount", "modprobe@drm.service"),
    *(
        "modprobe@efi_pstore.service",
        "modprobe@loop.service",
        "serial-getty@ttyS0.service",
        "systemd-timesyncd.service",
    ),
)
_FILES = Path(__file__).with_name("template_root")
_PLACES = {
    "fstab": "etc",
    "20-wired.network": "etc/systemd/network",
    "guest-shell": "usr/sbin",
    "guest-shell.service": "etc/systemd/system",
}
SIZE = 3 << 30


@dataclass(frozen=True, slots=True)
class TemplateImage:
    """Files that a template is made from; nobody writes to them."""

    kernel: Path
    root: Path
    lock: int
    """A descriptor that keeps them there until it is closed."""


def find_or_build(*, cloud_init: bool = False) -> TemplateImage:
    """Built if the cache has none (a minute). ImageFailed."""
    packages = _CLOUD_PACKAGES if cloud_init else _PACKAGES
    digest = hashlib.sha256(Path(__file__).read_bytes() + Path(image.__file__).read_bytes() + repr(packages).encode())
    for file in sorted(_FILES.iterdir()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    entry, lock = image.find_or_build_entry(
        f"template-{digest.hexdigest()[:16]}", lambda directory: _build(directory, packages)
    )
    return TemplateImage(entry / "vmlinuz", entry / "root.img", lock)


def with_files(
    template: TemplateImage, target: Path, files: Mapping[str, tuple[bytes, int]], links: Mapping[str, str]
) -> None:
    """Copy the system to `target` and put files (path: content, mode) and symbolic links (path: destination) in it.

    Holes stay holes. ImageFailed."""
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", str(template.root), str(target)], check=True)
    target.chmod(0o600)
    folder = target.with_name(target.name + ".files")
    folder.mkdir()
    commands = []
    made: set[str] = set()
    for path in (*files, *links):
        for parent in reversed(Path(path).parents[:-1]):
            if str(parent) not in made:
                made.add(str(parent))
                commands.append(f"mkdir {parent}")  # one that is there already is an error that says nothing
    for number, (path, (content, mode)) in enumerate(files.items()):
        (folder / str(number)).write_bytes(content)
        commands.append(f"write {folder / str(number)} {path}")
        commands.append(f"set_inode_field {path} mode 0{0o100000 | mode:o}")
        commands += [f"set_inode_field {path} {owner} 0" for owner in ("uid", "gid")]
    commands += [f"symlink {path} {destination}" for path, destination in links.items()]
    commands += [f"stat {path}" for path in (*files, *links)]
    done = subprocess.run(
        ["/usr/sbin/debugfs", "-w", "-f", "/dev/stdin", str(target)],
        input="\n".join(commands) + "\n",
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode or done.stdout.count("Inode: ") != len(files) + len(links):
        raise image.ImageFailed(f"debugfs:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    shutil.rmtree(folder)


def _build(directory: Path, packages: tuple[str, ...]) -> None:
    tree = image.install_debian(
        directory,
        packages,
        f'--customize-hook=chroot "$1" useradd --create-home --shell /bin/bash --uid 1000 {LOGIN_USER}',
        '--customize-hook=chroot "$1" systemctl enable systemd-networkd.service systemd-networkd-wait-online.service',
    )
    for file in sorted(_FILES.iterdir()):
        folder = tree / _PLACES[file.name]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / file.name)
        (folder / file.name).chmod(0o755 if file.read_bytes().startswith(b"#!") else 0o644)
    wanted = tree / "etc/systemd/system/sysinit.target.wants"
    wanted.mkdir(parents=True, exist_ok=True)
    (wanted / "guest-shell.service").symlink_to("../guest-shell.service")
    for unit in _NOT_STARTED:
        (tree / "etc/systemd/system" / unit).unlink(missing_ok=True)
        (tree / "etc/systemd/system" / unit).symlink_to("/dev/null")
    (tree / "etc/hostname").write_text("template\n")
    (tree / "etc/hosts").write_text("127.0.0.1 localhost\n")
    # Empty: each machine draws its own.
    (tree / "etc/machine-id").write_text("")
    (tree / "var/lib/dbus/machine-id").unlink(missing_ok=True)
    (tree / "etc/resolv.conf").unlink(missing_ok=True)
    image.make_file_system(directory / "root.img", tree, SIZE, journal=True)
    shutil.rmtree(tree)
