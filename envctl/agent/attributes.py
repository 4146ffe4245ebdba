"""What a file carries beside its bytes: read as a row, put back from a row.

One rule: files are named by a directory's descriptor and a name in it, and no symbolic link is followed, so that whoever
owns the tree cannot lead root elsewhere. Owners go by name where this machine knows the name, else by number.

Not saved: labels of SELinux and the like (they belong to the machine's policy), inode flags, device nodes, sockets.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from typing import Final

from envctl.agent.tree import DIRECTORY, FIFO, FILE, SYMLINK, Row

_SAVED: Final = ("user.", "system.posix_acl_", "security.capability")
TIME_NS_MAX: Final = (1 << 63) - 1
"""In the year 2262. File systems know later times; a row does not, and has this one."""
_NO_XATTRS: Final = frozenset({errno.ENOTSUP, errno.EOPNOTSUPP})
_TYPES: Final = {stat.S_IFDIR: DIRECTORY, stat.S_IFREG: FILE, stat.S_IFLNK: SYMLINK, stat.S_IFIFO: FIFO}


class Names:
    """Names of users and groups, each looked up once in a run."""

    def __init__(self) -> None:
        self._users: dict[int, bytes] = {}
        self._groups: dict[int, bytes] = {}
        self._uids: dict[bytes, int | None] = {}
        self._gids: dict[bytes, int | None] = {}

    def user(self, uid: int) -> bytes:
        if uid not in self._users:
            try:
                self._users[uid] = os.fsencode(pwd.getpwuid(uid).pw_name)
            except KeyError:
                self._users[uid] = b""
        return self._users[uid]

    def group(self, gid: int) -> bytes:
        if gid not in self._groups:
            try:
                self._groups[gid] = os.fsencode(grp.getgrgid(gid).gr_name)
            except KeyError:
                self._groups[gid] = b""
        return self._groups[gid]

    def owner(self, row: Row) -> tuple[int, int]:
        """(uid, gid) on this machine."""
        if row.user not in self._uids:
            try:
                self._uids[row.user] = pwd.getpwnam(os.fsdecode(row.user)).pw_uid if row.user else None
            except KeyError:
                self._uids[row.user] = None
        if row.group not in self._gids:
            try:
                self._gids[row.group] = grp.getgrnam(os.fsdecode(row.group)).gr_gid if row.group else None
            except KeyError:
                self._gids[row.group] = None
        uid, gid = self._uids[row.user], self._gids[row.group]
        return row.uid if uid is None else uid, row.gid if gid is None else gid


def _by_descriptor(directory: int, name: bytes) -> bytes:
    """A path for calls that take no directory descriptor: its last part alone can be a link."""
    return b"/proc/self/fd/%d/%s" % (directory, name)


def read(path: bytes, directory: int, name: bytes, status: os.stat_result, names: Names) -> Row:
    """The row of `name` in `directory`, without content. OSError if it is gone or unreadable."""
    kind = _TYPES[stat.S_IFMT(status.st_mode)]
    return Row(
        path=path,
        type=kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        user=names.user(status.st_uid),
        group=names.group(status.st_gid),
        mtime_ns=max(-TIME_NS_MAX, min(status.st_mtime_ns, TIME_NS_MAX)),
        size=status.st_size if kind == FILE else 0,
        target=os.readlink(name, dir_fd=directory) if kind == SYMLINK else b"",
        xattrs=_xattrs(directory, name),
    )


def _xattrs(directory: int, name: bytes) -> tuple[tuple[bytes, bytes], ...]:
    path = _by_descriptor(directory, name)
    try:
        listed = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno in _NO_XATTRS:
            return ()
        raise
    pairs = []
    for each in sorted(listed):
        if each.startswith(_SAVED):
            try:
                pairs.append((os.fsencode(each), os.getxattr(path, each, follow_symlinks=False)))
            except OSError as error:
                if error.errno != errno.ENODATA:
                    raise
    return tuple(pairs)


def apply(row: Row, directory: int, name: bytes, names: Names) -> list[str]:
    """Give `name` in `directory` what `row` says, its time last. What the file system cannot hold (an attribute it does not
    know) comes back as lines for the log; anything else is an OSError."""
    problems = []
    uid, gid = names.owner(row)
    os.chown(name, uid, gid, dir_fd=directory, follow_symlinks=False)
    path = _by_descriptor(directory, name)
    try:
        held = {each for each in os.listxattr(path, follow_symlinks=False) if each.startswith(_SAVED)}
    except OSError as error:
        if error.errno not in _NO_XATTRS:
            raise
        held = set()
    wanted = {os.fsdecode(each): value for each, value in row.xattrs}
    for each in held - wanted.keys():
        os.removexattr(path, each, follow_symlinks=False)
    if row.type != SYMLINK:
        os.chmod(name, row.mode, dir_fd=directory)
    for each, value in wanted.items():
        try:
            os.setxattr(path, each, value, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (*_NO_XATTRS, errno.EPERM, errno.ENOSPC, errno.E2BIG):
                raise
            problems.append(f"/{os.fsdecode(row.path)}: attribute {each} was not put back: {error.strerror}")
    os.utime(name, ns=(row.mtime_ns, row.mtime_ns), dir_fd=directory, follow_symlinks=False)
    return problems


def open_below(base: int, path: bytes) -> int:
    """A descriptor of the directory `path` below the directory `base`; no part of it may be a symbolic link."""
    descriptor = os.dup(base)
    try:
        for part in path.split(b"/") if path else ():
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
