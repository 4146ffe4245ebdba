"""Drives fuzz targets by hand.

    python -m tests.fuzz                      every target for ten seconds
    python -m tests.fuzz command --seconds 300

With `atheris` installed (pip install atheris, Linux, CPython 3.11 to 3.13) and one target named, libFuzzer drives it, and what
follows `--` is libFuzzer's. Else inputs are the target's seeds and what random changes make of them, and those that run a line
nobody ran before are kept and changed again.

One rule: an input that raises is written to .results/fuzz/TARGET-DIGEST and printed; the run ends with 1. To see it again:
python -m tests.fuzz TARGET --input FILE.
"""

import argparse
import hashlib
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, FunctionType
from typing import Any

from tests.fuzz.targets import TARGETS, Target, mutated

FOUND = Path(__file__).parents[2] / ".results" / "fuzz"
RUN_SECONDS = 10.0
MEMORY_BYTES = 4 << 30
PACKAGES = tuple(str(Path(__file__).parents[2] / name) for name in ("blockdev", "cowsync", "integrity", "plugin"))


class Lines:
    """Which lines of the product have run. A context manager; `new` counts those of the block that no block ran before."""

    def __init__(self) -> None:
        self.new = 0
        self._seen: set[tuple[object, int]] = set()

    def __enter__(self) -> "Lines":
        self.new = 0
        sys.settrace(self._call)
        return self

    def __exit__(self, *what: object) -> None:
        sys.settrace(None)

    def __len__(self) -> int:
        return len(self._seen)

    def _call(self, frame: FrameType, event: str, argument: object) -> Any:
        return self._line if frame.f_code.co_filename.startswith(PACKAGES) else None

    def _line(self, frame: FrameType, event: str, argument: object) -> Any:
        place = (frame.f_code, frame.f_lineno)
        if place not in self._seen:
            self._seen.add(place)
            self.new += 1
        return self._line


def search(target: Target, seconds: float, dice: random.Random) -> tuple[bytes, Exception] | None:
    """Guided by the lines that run: the first input that raises or does not end, and what it raised."""
    signal.signal(signal.SIGALRM, _too_long)
    corpus, lines, runs = list(target.seeds), Lines(), 0
    waiting = list(target.seeds)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        data = waiting.pop() if waiting else mutated(dice.choice(corpus), dice, target.most)
        runs += 1
        signal.setitimer(signal.ITIMER_REAL, RUN_SECONDS)
        try:
            # Tracing costs tenfold: one in eight of the changed inputs is enough to find what is worth keeping.
            if waiting or not runs & 7:
                with lines:
                    target.run(data)
                if lines.new:
                    corpus.append(data)
            else:
                target.run(data)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is what is looked for
            return data, error
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    print(f"{target.name}: {runs} inputs, {len(lines)} lines, {len(corpus)} kept", flush=True)
    return None


def _too_long(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"still at work after {RUN_SECONDS:.0f} s")


def keep(target: Target, data: bytes, error: Exception) -> None:
    FOUND.mkdir(parents=True, exist_ok=True)
    path = FOUND / f"{target.name}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    traceback.print_exception(error)
    print(f"{target.name}: {path}", flush=True)


def libfuzzer(target: Target, seconds: int, more: list[str]) -> bool:
    """Hands over to libFuzzer, which does not come back. False where `atheris` is not installed."""
    try:
        import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]  # optional, and untyped
    except ImportError:
        return False
    seeds = FOUND / f"{target.name}-seeds"
    seeds.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds:
        (seeds / hashlib.sha256(seed).hexdigest()[:12]).write_bytes(seed)
    for function in _functions():
        atheris.instrument_func(function)
    atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", f"-max_len={target.most}", *more, str(seeds)], target.run)
    atheris.Fuzz()
    return True


def _functions() -> Iterator[FunctionType]:
    """Of the product's modules that are loaded."""
    for name, module in list(sys.modules.items()):
        if name.startswith(("blockdev.", "cowsync.", "integrity.", "plugin.")):
            places = [module, *(each for each in vars(module).values() if isinstance(each, type))]
            for place in places:
                for found in list(vars(place).values()):
                    if isinstance(found, FunctionType) and found.__module__ == name:
                        yield found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=10, help="for each target (10)")
    parser.add_argument("--seed", type=int, default=0, help="of the random changes (the clock)")
    parser.add_argument("--input", type=Path, help="run the target on this file alone")
    arguments, _, more = _split(sys.argv[1:])
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.targets) - set(TARGETS))
    if unknown:
        parser.error(f"there is no target {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    chosen = [TARGETS[name] for name in options.targets or TARGETS]
    if options.input is not None:
        for target in chosen:
            target.run(options.input.read_bytes())
        return 0
    if len(options.targets) == 1 and libfuzzer(chosen[0], options.seconds, more):
        return 0
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    dice = random.Random(options.seed or time.time_ns())
    bad = 0
    for target in chosen:
        found = search(target, options.seconds, dice)
        if found is not None:
            keep(target, *found)
            bad = 1
    return bad


def _split(words: list[str]) -> tuple[list[str], str, list[str]]:
    at = words.index("--") if "--" in words else len(words)
    return words[:at], "--", words[at + 1 :]


if __name__ == "__main__":
    sys.exit(main())
