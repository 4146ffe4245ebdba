"""Serving a disk to the host one runs on, when that host is short of memory.

The kernel frees memory by writing dirty pages out, to our disk too. If the daemon then waits for memory that only its own
answers can free, both wait for ever. PR_SET_IO_FLUSHER (prctl(2), since Linux 5.6) is for such processes: their allocations
never wait for I/O (PF_MEMALLOC_NOIO), and they are not held back for dirty pages of others (PF_LOCAL_THROTTLE).
"""

import ctypes
import logging
import os

log = logging.getLogger(__name__)

PR_SET_IO_FLUSHER = 57


def become_io_flusher() -> bool:
    """Make this thread, and all threads and processes it starts from now on, one that others' memory waits for.

    Needs CAP_SYS_RESOURCE. False without it, or without the kernel's support: that costs nothing where initiators are on
    other hosts."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) == 0:
        return True
    log.debug("not an I/O flusher for the kernel: %s", os.strerror(ctypes.get_errno()))
    return False
