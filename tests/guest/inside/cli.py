"""Several `s3block` commands one after the other, for the price of one start: that takes seconds under emulation."""

import os
import sys


def several(commands: list[list[str]]) -> None:
    """Each in a process of its own, forked after our modules were imported. AssertionError at the first that fails."""
    from blockdev.cli import main

    for words in commands:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            sys.argv = ["s3block", *words]
            status = 70
            try:
                main()
            except SystemExit as ended:
                status = ended.code if isinstance(ended.code, int) else 1
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        _, how = os.waitpid(child, 0)
        assert how == 0, f"s3block {' '.join(words)} ended with {os.waitstatus_to_exitcode(how)}"
