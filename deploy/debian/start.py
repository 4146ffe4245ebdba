"""What the commands in /usr/bin do first: find the modules for this Python, and go on in the command.

One rule: a process keeps the code that it began with. The package's files lie in `shipped` and are replaced by an upgrade; its
postinst makes `builds/NAME`, links to the same files, which stays for as long as any process runs from it. So a mount or a
disk's server of the old version may load a module that it had not needed before, and finds the one that it was written for.
"""

import importlib
import os
import sys
from pathlib import Path
from typing import NoReturn

HOME = Path("/usr/lib/bucketworks")
CONFIGURATION = 3
"""docs/exit-codes.md; the table itself is among the modules that may be missing."""


def module_folders(home: Path, version: tuple[int, int]) -> list[str]:
    """Where the modules for this Python are: those with compiled code, then all others. LookupError, with a message for
    people, where the package has none for it."""
    build = (home / "shipped" / "BUILD").read_text(encoding="ascii").strip()
    tree = home / "builds" / build
    if not tree.is_dir():  # unpacked, and not configured yet
        tree = home / "shipped"
    own = tree / f"python{version[0]}.{version[1]}"
    if not own.is_dir():
        known = ", ".join(sorted(one.name.removeprefix("python") for one in tree.glob("python3.*")))
        raise LookupError(f"bucketworks has no modules for Python {version[0]}.{version[1]}; it has them for {known}")
    return [str(own), str(tree / "python3")]


def start(module: str, function: str, home: Path = HOME) -> NoReturn:
    """Run the command; ends the process with its exit code. What it starts with this Python finds the same modules."""
    try:
        folders = module_folders(home, sys.version_info[:2])
    except (LookupError, OSError) as error:
        sys.stderr.write(f"error: {error}\n  install the bucketworks package that was built for this Debian\n")
        sys.exit(CONFIGURATION)
    sys.path[:] = folders + [one for one in sys.path if one != str(home)]
    # For children: isolated from the user's and the working directory's modules as this process is by -I.
    os.environ.update(PYTHONPATH=os.pathsep.join(folders), PYTHONSAFEPATH="1", PYTHONNOUSERSITE="1")
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.exit(getattr(importlib.import_module(module), function)())
