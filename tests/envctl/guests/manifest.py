"""Programs that run inside a guest: one writes a home with every attribute that files have, one lists a home with all of them.

Texts, because the guest has no module of ours. What a list leaves out: the times of access and of change of the inode, inode
and device numbers, which nobody can set.
"""

from typing import Final

WRITE: Final = r"""
import os, subprocess, sys
home = os.fsencode(sys.argv[1])
os.makedirs(home + b"/work/empty", exist_ok=True)
def put(name, content, mode=0o644, when=1_600_000_000_123_456_789):
    path = home + b"/work/" + name
    with open(path, "wb") as out:
        out.write(content)
    os.chmod(path, mode)
    os.utime(path, ns=(when, when))
    return path
put(b"plain", b"hello\n")
put(b"nothing", b"")
put(b"script", b"#!/bin/sh\n", 0o755)
put(b"private", b"secret", 0o600)
put(b"setgid", b"x", 0o2751)
put(b"old", b"x", when=1)
put(b"before-1970", b"x", when=-5_000_000_000)
put(b"new\nline and \xff\xfe not UTF-8", b"odd")
put("ümläut \U0001f600".encode(), b"odd")
put(b" blank", b"odd"); put(b"-rf", b"odd"); put(b"a\\b", b"odd"); put(b"x" * 255, b"long")
put(b"large", bytes(range(256)) * 16384)
hard = put(b"hard-1", b"one file, three names")
os.link(hard, home + b"/work/hard-2")
os.makedirs(home + b"/work/deep/er", exist_ok=True)
os.link(hard, home + b"/work/deep/er/hard-3")
os.symlink(b"plain", home + b"/work/link")
os.symlink(b"/nowhere/\xff", home + b"/work/dangling")
os.mkfifo(home + b"/work/fifo", 0o640)
sparse = home + b"/work/sparse"
with open(sparse, "wb") as out:
    out.write(b"begin"); out.seek(64 << 20); out.write(b"middle"); out.truncate(256 << 20)
os.utime(sparse, ns=(5, 5))
tagged = put(b"tagged", b"x")
os.setxattr(tagged, "user.colour", b"blue\0\xff")
os.setxattr(tagged, "user.empty", b"")
os.setxattr(home + b"/work/empty", "user.of-a-folder", b"1")
listed = put(b"listed", b"x", 0o640)
subprocess.run(["setfacl", "-m", "u:daemon:rw,g:games:r,m::rwx", listed], check=True)
subprocess.run(["setfacl", "-d", "-m", "u:daemon:rwx", home + b"/work/deep"], check=True)
able = put(b"able", b"\x7fELF", 0o755)
others = put(b"others", b"x")
import pwd, grp
user = pwd.getpwnam("user")
for folder, folders, names in os.walk(home + b"/work"):
    for name in folders + names:
        os.lchown(os.path.join(folder, name), user.pw_uid, user.pw_gid)
os.lchown(home + b"/work", user.pw_uid, user.pw_gid)
os.chown(others, pwd.getpwnam("daemon").pw_uid, grp.getgrnam("games").gr_gid)
os.chown(home + b"/work/private", 54321, 54322)  # nobody's
os.chmod(home + b"/work/setgid", 0o2751)  # a change of owner takes it away
subprocess.run(["setcap", "cap_net_bind_service=ep", able], check=True)
os.chmod(home + b"/work/empty", 0o1777)
os.utime(home + b"/work/link", ns=(7_000_000_007, 7_000_000_007), follow_symlinks=False)
for folder in (b"/work/deep/er", b"/work/deep", b"/work/empty", b"/work"):
    os.utime(home + folder, ns=(1_500_000_000_000_000_001, 1_500_000_000_000_000_001))
"""

LIST: Final = r"""
import grp, hashlib, json, os, pwd, stat, sys
home = os.fsencode(sys.argv[1])
found, links = {}, {}
def name_of(table, number):
    try:
        return table(number)[0]
    except KeyError:
        return None
def holes(path, size):
    places, at = [], 0
    with open(path, "rb") as file:
        while at < size:
            try:
                data = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(file.fileno(), data, os.SEEK_HOLE)
            places.append([data, at])
    return places
def one(path):
    status = os.lstat(path)
    row = {
        "mode": oct(status.st_mode), "uid": status.st_uid, "gid": status.st_gid,
        "user": name_of(pwd.getpwuid, status.st_uid), "group": name_of(grp.getgrgid, status.st_gid),
        "mtime": status.st_mtime_ns,
        "xattrs": {name: os.getxattr(path, name, follow_symlinks=False).hex()
                   for name in sorted(os.listxattr(path, follow_symlinks=False))},
    }
    if stat.S_ISLNK(status.st_mode):
        row["target"] = os.readlink(path).hex()
    if stat.S_ISREG(status.st_mode):
        row["size"] = status.st_size
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
        row["sha256"] = digest.hexdigest()
        if status.st_size > 8 << 20:
            row["data"] = holes(path, status.st_size)
        if status.st_nlink > 1:
            row["hard link of"] = links.setdefault(status.st_ino, (path[len(home):]).hex())
    found[path[len(home):].hex()] = row
one(home)
for folder, folders, names in os.walk(home):
    folders.sort()
    for name in sorted(folders + names):
        one(os.path.join(folder, name))
print(json.dumps(found))
"""
