"""`s3block` commands in forks of a process that has imported the program: its start takes seconds under emulation.

One rule: it is for tests of what volumes do. How commands start is tested where they are run as people run them: `test_boot`,
`test_handler`, `test_lio_setup`, `test_reboot`.
"""

import os
import sys

import blockdev.daemon  # noqa: F401  # so that a forked `serve` has it
from blockdev.cli import main


def several(commands: list[list[str]]) -> None:
    """Each in a process of its own, one after the other. AssertionError at the first that fails."""
    for words in commands:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            status = 70
            try:
                one(words)
            except SystemExit as ended:
                status = ended.code if isinstance(ended.code, int) else 1
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        _, how = os.waitpid(child, 0)
        assert how == 0, f"s3block {' '.join(words)} ended with {os.waitstatus_to_exitcode(how)}"


def one(words: list[str]) -> None:
    """In this process, which ends with the command's status."""
    sys.argv = ["s3block", *words]
    main()
