"""A worker: jobs, the reconciler and the schedule, in one event loop.

One rule: a worker may be killed at any moment, and any number of them run on one database. Its name is made anew at each start.
"""

import asyncio
import os
import socket

from envctl.calling import Context
from envctl.provision.reconciler import Reconciler
from envctl.provision.runner import Runner
from envctl.provision.scheduler import Scheduler
from envctl.provision.work import PACE, Pace


class Worker:
    """`context.wake` should call `wake`, from any thread. Use it in one event loop: the drivers' connections belong to that."""

    def __init__(
        self, context: Context, *, pace: Pace = PACE, reconcile_s: float = 60.0, schedule_s: float = 30.0
    ) -> None:
        self.name = f"{socket.gethostname()[:32]}:{os.getpid()}:{context.random(4).hex()}"
        self._runner = Runner(context, self.name, pace=pace)
        self._reconciler = Reconciler(context, self.name, every_s=reconcile_s, poll_s=min(2.0, reconcile_s))
        self._scheduler = Scheduler(context, self.name, every_s=schedule_s)

    def wake(self) -> None:
        """There may be a job. From any thread; nothing before `run`."""
        self._runner.wake()

    def stop(self) -> None:
        """`run` returns soon; jobs under way are given back for the next worker. From any thread."""
        self._runner.stop()

    async def run(self) -> None:
        """Until `stop` or cancellation."""
        upkeep = [asyncio.create_task(self._reconciler.run()), asyncio.create_task(self._scheduler.run())]
        try:
            await self._runner.run()
        finally:
            for task in upkeep:
                task.cancel()
            await asyncio.gather(*upkeep, return_exceptions=True)
