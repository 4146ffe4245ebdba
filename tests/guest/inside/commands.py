"""Commands and conditions with a time limit: what every script in the guest is made of."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path


class CommandFailed(AssertionError):
    """A command ended badly or not in time; the message has its output."""


def run(*words: str | Path, seconds: float = 60.0, check: bool = True) -> str:
    """What it printed, both streams. CommandFailed if it fails (unless `check` is off) or takes longer than `seconds`."""
    command = [str(word) for word in words]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            check=False,
            text=True,
            errors="replace",
        )
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(f"{command} took longer than {seconds} s:\n{error.output}\n{hung()}") from error
    if check and done.returncode:
        raise CommandFailed(f"{command} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    """Asks every 50 ms. CommandFailed after `seconds`."""
    give_up = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > give_up:
            raise CommandFailed(f"after {seconds} s still not: {what}\n{hung()}")
        time.sleep(0.05)


def load(*modules: str) -> None:
    run("modprobe", "-a", *modules)


def hung() -> str:
    """The tasks that sleep uninterruptibly (state D), each with the kernel's stack; empty if there are none."""
    lines = []
    for status in Path("/proc").glob("[0-9]*/task/[0-9]*/status"):
        try:
            fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
            if fields["State"].startswith("D"):
                stack = status.with_name("stack").read_text()
                lines.append(f"{fields['Pid']} {fields['Name']}\n{stack}")
        except (OSError, KeyError):
            continue  # it has ended while we looked
    return "\n".join(lines)


def still_hung(seconds: float = 3.0) -> str:
    """The same, for tasks that stay so: a task that waits for a disk is in state D for a moment."""
    give_up = time.monotonic() + seconds
    while found := hung():
        if time.monotonic() > give_up:
            return found
        time.sleep(0.1)
    return ""
