"""`make demo-envctl`: the console on a cluster that is not there. The same as `s3-envctl demo`, from a source tree.

python deploy/envctl_demo.py [--listen HOST:PORT] [--dir DIRECTORY] [--check]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from envctl.cli import app
from s3core.console import run

if __name__ == "__main__":
    sys.exit(int(run(app, "s3-envctl", ["demo", *sys.argv[1:]])))
