"""One backup written through the engine of the plugin: `python -m bench.backup_writer STORAGE FILE KEY`.

One rule: nothing but what vzdump's stream costs: pieces of 1 MiB, in order, their number unknown to the engine.
"""

import sys
from pathlib import Path

from plugin.arguments import named_storage
from plugin.session import opened

PIECE_BYTES = 1 << 20


def main() -> int:
    storage, file, key = sys.argv[1:]
    with opened(named_storage(storage)) as session, session.uploader() as uploader, Path(file).open("rb") as source:
        stream = uploader.stream(session.storage.prefix + key)
        while piece := source.read(PIECE_BYTES):
            stream.write(piece)
        done = stream.finish()
    sys.stdout.write(f"{done.size} {done.proof}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
