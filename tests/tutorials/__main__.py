import sys
import tempfile
from pathlib import Path

from tests.tutorials.play import own_server, play

with tempfile.TemporaryDirectory(prefix="tutorial-") as name, own_server(Path(name) / "radosgw") as server:
    problems = []
    for number, page in enumerate(sys.argv[1:]):
        played = play(Path(page).resolve(), Path(name) / str(number), server)
        print(played.story, flush=True)
        problems += [played.problem] if played.problem else []
    sys.exit("\n".join(problems) or 0)
