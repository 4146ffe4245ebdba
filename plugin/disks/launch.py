"""The process of an active disk, from its beginning until it becomes `s3block serve`: `python -m plugin.disks.launch FILE`.

One rule: what it is to serve stands in the file of the activation (`serving`), so that the unit `bucketworks-disk@FILE`, the
core and the gateway start the same thing, and it belongs to none of them.
"""

import fcntl
import os
import sys
from pathlib import Path

from plugin.disks import commands
from plugin.disks.serving import Activation


def main(path: Path) -> None:
    """Does not return. Raises FileNotFoundError where the disk is not active any more."""
    activation = Activation.read(path)
    hold(activation.process_file)
    log = Path(activation.log)
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if log.exists():
        os.replace(log, log.with_name(f"{log.name}.1"))
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    words = [*commands.program(), "serve", activation.volume, "--config", activation.config]
    os.execv(words[0], words)


def hold(path: Path) -> None:
    """Take the lock that says that a process serves the disk, for the life of this process, whatever it becomes. Ends it
    when another one has the lock."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"error: a process serves the disk of {path} already")
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    os.set_inheritable(descriptor, True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
