"""`make sim SEED=1234`, or `python -m tests.simulation 1234 [--episodes N] [--trace]`: replay simulated episodes.

Prints the plan, what the engine logged, and the promise that was broken, if one was."""

import argparse
import logging
import sys
import time
import traceback

from tests.simulation.family import Family
from tests.simulation.world import World, draw


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("seed", type=int, help="number of the (first) episode")
    parser.add_argument("--episodes", type=int, default=1, help="how many, from that one on")
    parser.add_argument("--family", action="store_true", help="a volume and its clones")
    parser.add_argument("--trace", action="store_true", help="print every scheduler step of the last life")
    options = parser.parse_args()
    if options.episodes > 1:
        logging.disable(logging.CRITICAL)
    else:
        logging.basicConfig(level=logging.DEBUG, format="%(name)s: %(message)s", stream=sys.stdout)
    failed = 0
    started = time.monotonic()
    for seed in range(options.seed, options.seed + options.episodes):
        world = Family(seed) if options.family else World(seed, trace=options.trace)
        if options.episodes == 1:
            print(f"episode {seed}: {draw(seed)}")
        try:
            world.run()
        except Exception as error:  # noqa: BLE001  # whatever it is, it is what the replay is for
            failed += 1
            if options.episodes == 1:
                traceback.print_exc(file=sys.stdout)
            print(f"seed {seed}: {type(error).__name__}: {error}")
        if options.trace and isinstance(world, World):
            for number, name in world.loop.trace or world.last_trace or ():
                print(f"{number:7} {name}")
        if options.episodes == 1:
            print(f"what happened: {dict(world.happened)}")
            if isinstance(world, World):
                print(f"digest: {world.digest}")
    seconds = time.monotonic() - started
    print(f"{options.episodes} episodes in {seconds:.1f} s, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
