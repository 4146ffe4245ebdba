"""One verb of the agent in a process of its own, which is killed at the `nth` time that it reaches `point` (none: at no point).

Imports nothing but the agent: it runs on Python 3.9 where there is one.
"""

import os
import signal
import sys

from envctl.agent.client import World
from envctl.agent.places import Places
from envctl.agent.service import Service


def main() -> int:
    verb, folder, point, nth, now = sys.argv[1:]
    left = int(nth)
    clock = [float(now)]

    def reached(name: str) -> None:
        nonlocal left
        if name == point:
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    # A process that is killed loses nothing that the kernel has; syncing the whole machine is for power cuts.
    os.sync = lambda: None
    places = Places(
        etc=folder + "/etc", state=folder + "/state", run=folder + "/run", base=os.fsencode(folder) + b"/disk/"
    )
    service = Service(places, World(lambda: clock[0], sleep, os.urandom), version="test", reached=reached)
    if verb == "backup":
        print(service.backup("timer").number)
    else:
        service.restore()
    return 0


if __name__ == "__main__":
    sys.exit(main())
