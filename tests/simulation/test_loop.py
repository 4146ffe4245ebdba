"""The simulated loop itself: it must shuffle, repeat, jump over waits, see deadlocks, and crash where it is told to."""

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

import pytest

from tests.simulation.loop import Crash, Deadlock, Endless, SimLoop, new_loop


def loop(seed: int = 1) -> SimLoop:
    return new_loop(random.Random(seed))


def order(seed: int) -> list[int]:
    seen: list[int] = []

    async def note(number: int) -> None:
        await asyncio.sleep(0)
        seen.append(number)

    async def main() -> None:
        await asyncio.gather(*(note(number) for number in range(8)))

    loop(seed).run(main())
    return seen


def test_ready_tasks_run_in_an_order_the_seed_decides() -> None:
    assert order(1) == order(1)
    assert {tuple(order(seed)) for seed in range(20)} != {tuple(range(8))}
    assert sorted(order(3)) == list(range(8))


def test_time_jumps_to_the_next_timer() -> None:
    simulated = loop()

    async def main() -> float:
        await asyncio.sleep(3600)
        async with asyncio.timeout(10):
            await asyncio.sleep(5)
        return asyncio.get_running_loop().time()

    assert simulated.run(main()) == 3605


def test_timers_of_one_moment_and_cancelled_ones() -> None:
    simulated = loop()
    seen: list[str] = []

    async def main() -> None:
        simulated.call_later(1, seen.append, "kept")
        simulated.call_later(1, seen.append, "cancelled").cancel()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                await simulated.create_future()

    simulated.run(main())
    assert seen == ["kept"]


def test_a_deadlock_is_seen() -> None:
    simulated = loop()

    async def main() -> None:
        await simulated.create_future()

    with pytest.raises(Deadlock, match="nothing can happen any more"):
        simulated.run(main())
    simulated.abandon()


def test_a_run_that_never_ends_is_ended() -> None:
    simulated = new_loop(random.Random(1), steps_max=100)

    async def main() -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(Endless, match="still running after 101 steps"):
        simulated.run(main())
    simulated.abandon()


@pytest.mark.parametrize("step", [1, 2, 7, 20])
def test_a_crash_falls_at_its_step_and_nothing_runs_after_it(step: int) -> None:
    simulated = loop()
    simulated.crash_at = step
    cleaned: list[str] = []
    ran = 0

    async def work() -> None:
        nonlocal ran
        try:
            while True:
                await asyncio.sleep(0)
                ran += 1
        finally:
            cleaned.append("work")

    async def main() -> None:
        await asyncio.gather(work(), work())

    with pytest.raises(Crash, match=f"crash at step {step}"):
        simulated.run(main())
    before = ran
    simulated.abandon()
    assert ran == before
    assert simulated.steps == step


def test_a_crash_within_a_callback_passes_everything_that_catches_exceptions() -> None:
    simulated = loop()
    simulated.crash_at_point = 2

    async def write() -> None:
        try:
            simulated.point("write")
            simulated.point("write")
        except Exception:  # noqa: BLE001  # what engine code may do; the crash must pass it all the same
            pytest.fail("the crash was caught")

    with pytest.raises(Crash, match="crash at point 2, write"):
        simulated.run(write())
    simulated.abandon()


def test_an_exception_nobody_awaits_is_kept() -> None:
    simulated = loop()

    async def main() -> None:
        simulated.call_soon(lambda: 1 // 0)
        await asyncio.sleep(1)

    simulated.run(main())
    assert [type(error) for error in simulated.failures] == [ZeroDivisionError]


def test_what_engine_code_uses_of_asyncio_works_here() -> None:
    """A new Python may ask more of a loop; this says so before anything else does."""

    async def main() -> list[object]:
        semaphore, event, queue = asyncio.Semaphore(2), asyncio.Event(), asyncio.Queue[int]()

        async def worker(number: int) -> int:
            async with semaphore:
                await asyncio.sleep(0.1)
                await queue.put(number)
                event.set()
                return number

        tasks = [asyncio.get_running_loop().create_task(worker(number), name=str(number)) for number in range(3)]
        await event.wait()
        done, _ = await asyncio.wait(tasks, return_when=asyncio.ALL_COMPLETED)
        sleeper = asyncio.ensure_future(asyncio.sleep(100))
        sleeper.cancel()
        answers = await asyncio.gather(sleeper, return_exceptions=True)
        async with asyncio.TaskGroup() as group:
            group.create_task(worker(9))
        return [len(done), queue.qsize(), *answers]

    count, queued, cancelled = loop().run(main())
    assert (count, queued) == (3, 4)
    assert isinstance(cancelled, asyncio.CancelledError)


def test_a_thread_is_refused() -> None:
    async def main() -> None:
        await asyncio.to_thread(int)

    with pytest.raises(AssertionError, match="execution port"):
        loop().run(main())


def test_the_trace_names_what_ran() -> None:
    simulated = loop()
    simulated.trace = []

    async def main() -> None:
        simulated.point("write journal")

    coroutine: Coroutine[Any, Any, None] = main()
    simulated.run(coroutine)
    names = [name for _, name in simulated.trace]
    assert names[0].endswith("main")
    assert names[1] == "write journal"
