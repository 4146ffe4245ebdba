"""`envctl-agent`: what systemd, the console's commands and people in the machine call.

    install    put the units in place            run      take the console's commands, until the end
    restore    enrol; bring the home back        status   is my work safe? (for everybody)
    backup     save the home, if it is time      version
    final      save the home before the machine stops

One rule: exit status 0 says that what was asked for is done, or is not to be done (not yet time, fenced); 75 that it may
work later; 1 that somebody has to look.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from envctl.agent import install, memory, status
from envctl.agent.client import World
from envctl.agent.errors import AgentError, Fenced, Moved, NotRestored, Unavailable
from envctl.agent.places import Places
from envctl.agent.service import Service

VERSION: Final = "1"
DONE: Final = 0
LOOK: Final = 1
LATER: Final = 75
LOCK_WAIT_S: Final = 3600.0
FINAL_WAIT_S: Final = 240.0
RETRY_S: Final = 10.0


@contextmanager
def locked(places: Places, wait_s: float, sleep: Any = time.sleep) -> Iterator[bool]:
    """Hold the lock; False where another process has it for longer than `wait_s`. The kernel frees it when its holder dies."""
    descriptor = os.open(places.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        waited = 0.0
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if waited >= wait_s:
                    yield False
                    return
                sleep(0.2)
                waited += 0.2
        yield True
    finally:
        os.close(descriptor)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="envctl-agent", description="Saves this machine's home, and brings it back.")
    parser.add_argument("--etc", default=Places().etc, help=argparse.SUPPRESS)
    parser.add_argument("--state", default=Places().state, help=argparse.SUPPRESS)
    parser.add_argument("--run", dest="run_folder", default=Places().run, help=argparse.SUPPRESS)
    parser.add_argument("--base", default="/", help=argparse.SUPPRESS)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("install", help="put the agent's units in place (root)")
    verbs.add_parser("restore", help="enrol with the console and bring the home back (root)")
    backup = verbs.add_parser("backup", help="save the home if the interval is over (root)")
    backup.add_argument("--now", action="store_true", help="whatever the interval says")
    verbs.add_parser("final", help="save the home before the machine stops (root)")
    verbs.add_parser("run", help="take commands of the console (root)")
    shown = verbs.add_parser("status", help="whether the home is saved, and when it was last")
    shown.add_argument("--json", action="store_true", help="for programs")
    verbs.add_parser("version", help="of the agent")
    options = parser.parse_args(arguments)
    base = os.fsencode(options.base).rstrip(b"/") + b"/"
    places = Places(etc=options.etc, state=options.state, run=options.run_folder, base=base)
    if options.verb == "version":
        print(VERSION)  # noqa: T201 - it is what the command is for
        return DONE
    if options.verb == "status":
        return _show(places, as_json=options.json)
    if options.verb == "install":
        install.install()
        return DONE
    os.umask(0o077)
    places.make()
    world = World(time.time, time.sleep, os.urandom)
    try:
        return _do(options.verb, places, world, now=bool(getattr(options, "now", False)))
    except Fenced as error:
        _tell(f"another machine has this home, and this one saves nothing any more: {error}")
        # Nobody is let into a machine whose home never came.
        return LOOK if options.verb == "restore" and not memory.load(places).restored else DONE
    except (Unavailable, Moved, NotRestored) as error:
        _tell(str(error))
        return LATER
    except (AgentError, OSError, ValueError) as error:
        _tell(str(error))
        return LOOK


def _do(verb: str, places: Places, world: World, *, now: bool) -> int:
    service = Service(places, world, version=VERSION)
    if verb == "run":
        service.run(lambda wait_s: locked(places, wait_s))
        return DONE
    if verb == "restore":
        while True:
            with locked(places, LOCK_WAIT_S) as held:
                if held and service.restore_until_done_or_later():
                    return DONE
            world.sleep(RETRY_S)
    with locked(places, FINAL_WAIT_S if verb == "final" else 0.0) as held:
        if not held:
            _tell("another run is under way")
            return DONE if verb == "backup" else LATER
        if verb == "final":
            service.backup("final")
        elif now or service.is_due():
            service.backup("asked" if now else "timer")
    return DONE


def _show(places: Places, *, as_json: bool) -> int:
    facts = status.read(places)
    if facts is None:
        _tell("the agent has not run since this machine started")
        return LATER
    if as_json:
        print(json.dumps(facts, indent=1))  # noqa: T201 - it is what the command is for
    else:
        print(status.words(facts))  # noqa: T201 - it is what the command is for
    return DONE


def _tell(line: str) -> None:
    print(f"envctl-agent: {line}", file=sys.stderr)  # noqa: T201 - the journal's line
