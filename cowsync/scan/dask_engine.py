"""The pieces of a scan or of an apply on a Dask cluster that is there already: `--cluster tcp://HOST:PORT`.

One rule: the cluster is somebody's. It is asked for work and told what is no longer wanted; nothing of it is started,
changed or shut down here. Dask gives a piece out again by itself when a worker dies; what it gives up on is WorkerLost.
Which run of a piece counts is the scheduler's to say, and it forgets that with the piece.

distributed is an extra that not every host needs, so it is imported when it is used.
"""

import asyncio
import logging
import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from cowsync.errors import ClusterUnavailable, Refused, StateDamaged
from cowsync.scan.engine import Hold, Told, WorkerLost
from s3core.settings import ConfigError

if TYPE_CHECKING:
    from distributed import Future as DaskFuture

Task = TypeVar("Task")
Answer = TypeVar("Answer")

CONNECT_S = 15.0
LOOK_S = 1.0
"""How often the cluster is looked at while pieces run."""
NO_WORKER_S = 60.0
"""A cluster may be without a worker this long (they are being started again) before the scan is given up."""
ANSWER_S = 5.0
"""For the scheduler to say which workers it has."""
GATHER_S = 300.0
"""For the way of one answer, some MB at most, from its worker."""
LOST = "the connection to its scheduler is lost"
PAGE = "docs/cowsync/cluster.md"
SAME_VERSION = "install the same on every worker and here, and start the workers again"


class DaskEngine:
    """`address` is the scheduler's. ClusterUnavailable where it does not answer or has no worker; Refused where distributed
    is not installed, or a worker runs another version than this host. `lanes` follow the cluster as it grows and shrinks.

    A future's error is ClusterUnavailable once the connection to the scheduler is lost or no worker is left."""

    def __init__(self, address: str, *, no_worker_s: float = NO_WORKER_S, look_s: float = LOOK_S) -> None:
        self._address = address
        self._no_worker_s = no_worker_s
        self._look_s = look_s
        # Guards what is open and why nothing more can be, between the caller, Dask's callbacks and the watch.
        self._lock = threading.Lock()
        self._open: dict[Future[Any], DaskFuture[Any] | None] = {}
        self._gone = ""
        self._topic = f"cowsync-{uuid4().hex}"
        self._told: dict[str, Told] = {}
        self._closing = threading.Event()
        self._versions = versions()
        # Any: most of its methods have no types.
        self._client: Any = _connected(address)
        try:
            check_versions(address, self._versions, _asked(self._client))
            self._lanes: int = sum(self._client.nthreads().values())
        except BaseException:
            self._client.close(timeout=CONNECT_S)
            raise
        self._client.subscribe_topic(self._topic, self._hear)
        self._watch = threading.Thread(target=self._look, name="cowsync-cluster", daemon=True)
        self._watch.start()

    @property
    def lanes(self) -> int:
        return max(1, self._lanes)

    def submit(self, function: Callable[[Task], Answer], task: Task) -> "Future[Answer]":
        outer: Future[Answer] = Future()
        with self._lock:
            gone = self._gone
            if not gone:
                self._open[outer] = None
        if gone:
            outer.set_exception(self._unavailable())
            return outer
        try:
            # Not pure: the same range listed again is another listing, never a remembered answer.
            inner = self._client.submit(on_worker, self._versions, function, task, pure=False)
        except Exception as error:  # noqa: BLE001 - handed to whoever asks for the result
            self._end(outer, error=self._meaning(error))
            return outer
        with self._lock:
            if outer in self._open:
                self._open[outer] = inner
        inner.add_done_callback(lambda done: self._finished(outer, done))
        return outer

    def submit_held(self, function: Callable[[Task, Hold], Answer], task: Task, told: Told) -> "Future[Answer]":
        name = uuid4().hex
        self._told[name] = told
        outer = self.submit(partial(held, function, self._topic, name), task)
        outer.add_done_callback(lambda _: self._told.pop(name, None))
        return outer

    def _hear(self, event: tuple[float, Sequence[str]]) -> None:
        """In a thread of Dask's. Of a piece that is answered, nobody wants to hear any more."""
        name, *words = event[1]
        told = self._told.get(name)
        if told is not None:
            told(tuple(words))

    def close(self) -> None:
        """Takes back what was not begun, and leaves. The cluster goes on."""
        self._closing.set()
        self._watch.join(timeout=CONNECT_S)
        with self._lock:
            left = [inner for inner in self._open.values() if inner is not None]
            waiting = list(self._open)
        if self._client.status == "running":
            self._client.unsubscribe_topic(self._topic)
            if left:
                self._client.cancel(left)
        for outer in waiting:
            self._end(outer, error=WorkerLost("the piece was dropped"))
        self._client.close(timeout=CONNECT_S)

    def _finished(self, outer: "Future[Any]", inner: "DaskFuture[Any]") -> None:
        """In a thread of Dask's."""
        if outer not in self._open:
            return
        try:
            answer = inner.result(timeout=GATHER_S)
        except BaseException as error:  # noqa: BLE001 - handed to whoever asks for the result; a cancelled one is no Exception
            self._end(outer, error=self._meaning(error))
        else:
            self._end(outer, answer=answer)

    def _end(self, outer: "Future[Any]", *, answer: Any = None, error: BaseException | None = None) -> None:
        """Whoever comes first says how a piece ended."""
        with self._lock:
            if outer not in self._open:
                return
            del self._open[outer]
        if error is None:
            outer.set_result(answer)
        else:
            outer.set_exception(error)

    def _meaning(self, error: BaseException) -> BaseException:
        """What an error out of Dask says about the piece."""
        from distributed import KilledWorker

        if self._client.status != "running" and not self._closing.is_set():
            self._give_up(LOST)
            return self._unavailable()
        if isinstance(error, KilledWorker):
            return WorkerLost(f"workers of {self._address} died under it: {error}")
        if isinstance(error, (CancelledError, asyncio.CancelledError, TimeoutError)):
            return WorkerLost(f"its answer is lost in {self._address}: {error or type(error).__name__}")
        if isinstance(error, ImportError) or isinstance(error.__cause__, ImportError):
            return Refused(
                f"the scheduler or a worker of {self._address} cannot run cowsync: {error.__cause__ or error}",
                hint=f"install it there, see {PAGE}",
            )
        return error

    def _unavailable(self) -> ClusterUnavailable:
        return ClusterUnavailable(
            f"the cluster {self._address} is gone: {self._gone}",
            hint="run it again when the cluster is back, or without --cluster; what is done is known",
        )

    def _give_up(self, why: str) -> None:
        with self._lock:
            self._gone = self._gone or why
            waiting = list(self._open)
        for outer in waiting:
            self._end(outer, error=self._unavailable())

    def _look(self) -> None:
        """Dask waits for ever for a worker or a scheduler to come back; a scan must not."""
        without_s = 0.0
        why = ""
        while not self._closing.wait(self._look_s):
            if self._client.status != "running":
                self._give_up(LOST)
                return
            began = time.monotonic()
            try:
                # What `Client.nthreads` does, but that it ends.
                threads = self._client.sync(self._client.scheduler.ncores, callback_timeout=ANSWER_S)
            except Exception as error:  # noqa: BLE001 - whatever it is, the scheduler did not answer this time
                why = f"its scheduler does not answer: {error or type(error).__name__}"
            else:
                self._lanes, why = sum(threads.values()), "it has no worker"
                if self._lanes:
                    without_s = 0.0
                    continue
            without_s += self._look_s + time.monotonic() - began
            if without_s >= self._no_worker_s:
                self._give_up(f"{why}, for {without_s:.0f} s")
                return


def on_worker(wanted: Mapping[str, str], function: Callable[[Task], Answer], task: Task) -> Answer:
    """Runs on a worker: the piece, with what only this host can get wrong said as such. Workers that joined since the
    scan began are compared here."""
    wrong = differing(wanted, versions())
    if wrong:
        raise Refused(f"worker {_here()} runs another version: {wrong}", hint=SAME_VERSION)
    try:
        return function(task)
    except ConfigError as error:
        raise Refused(
            f"worker {_here()}: {error}",
            hint=error.hint or f"every worker reads a configuration of its own, see {PAGE}",
        ) from error
    except StateDamaged as error:
        raise Refused(
            f"worker {_here()} does not see the state that this run began with: {error}",
            hint=f'keep the state where all reach it (`state = "s3://..."`), see {PAGE}',
        ) from error
    except OSError as error:
        raise Refused(f"worker {_here()}: {error}", hint=f"see {PAGE}") from error


def held(function: Callable[[Task, Hold], Answer], topic: str, piece: str, task: Task) -> Answer:
    """Runs on a worker."""
    return function(task, WorkerHold(topic, piece))


class WorkerHold:
    """One run of a piece, on the worker that runs it. The scheduler is asked: what a worker knows of itself may be old.
    What it tells goes to whoever gave the piece out, under `topic` and with the piece's name."""

    def __init__(self, topic: str, piece: str) -> None:
        from distributed import get_client, get_worker

        worker: Any = get_worker()
        self.name = f"worker {_here()}"
        self._worker, self._topic, self._piece = worker, topic, piece
        self._run = (worker.get_current_task(), worker.address, uuid4().hex)
        # Any: most of its methods have no types.
        self._client: Any = get_client()

    def begin(self) -> bool:
        return self._ask()

    def keep(self) -> None:
        self._ask()

    def tell(self, *words: str) -> None:
        self._worker.log_event(self._topic, [self._piece, *words])

    def _ask(self) -> bool:
        try:
            told: bool | None = self._client.run_on_scheduler(runs_before, *self._run)
        except Exception as error:
            # Whatever it is, the scheduler did not say that the piece is ours.
            raise WorkerLost(f"{self.name} cannot ask the scheduler: {error}") from error
        if told is None:
            raise WorkerLost(f"nobody waits for {self.name} any more")
        return told


RUNS = "cowsync-runs"
"""Under this name the scheduler keeps the runs of a piece beside the piece, and forgets them with it."""


def runs_before(key: str, address: str, token: str, dask_scheduler: Any = None) -> bool | None:
    """Runs on the scheduler. Whether the piece had another run before the one that `token` names, which is noted; None
    where the piece is not that worker's, or was begun anew since."""
    task = dask_scheduler.tasks.get(key)
    if task is None or task.processing_on is None or task.processing_on.address != address:
        return None
    if task.metadata is None:
        task.metadata = {}
    runs = task.metadata.setdefault(RUNS, [])
    if token not in runs:
        runs.append(token)
    return len(runs) > 1 if runs[-1] == token else None


def versions() -> dict[str, str]:
    """What must be the same here and on a worker: pieces go back and forth as pickled objects of these."""
    return {
        "bucketworks": version("bucketworks"),
        "distributed": version("distributed"),
        "Python": ".".join(platform.python_version_tuple()[:2]),
    }


def differing(wanted: Mapping[str, str], there: Mapping[str, str]) -> str:
    """What a worker has otherwise than this host, "" for nothing."""
    pairs = ((name, there.get(name, "none"), want) for name, want in wanted.items())
    return "; ".join(f"{name} {has}, not {want}" for name, has, want in pairs if has != want)


def check_versions(address: str, wanted: Mapping[str, str], told: Mapping[str, object]) -> None:
    """`told` has what each worker answered to `versions`, or the error. Refused where a worker is another version or cannot
    say which; ClusterUnavailable where there is none."""
    if not told:
        raise ClusterUnavailable(
            f"the cluster {address} has no worker", hint=f"start some: dask worker {address}; see {PAGE}"
        )
    for worker, there in told.items():
        if not isinstance(there, Mapping):
            raise Refused(
                f"{worker} of {address} cannot run cowsync: {there}", hint=f"install the same there, see {PAGE}"
            )
        wrong = differing(wanted, there)
        if wrong:
            raise Refused(f"{worker} of {address} runs another version: {wrong}", hint=SAME_VERSION)


def _connected(address: str) -> Any:
    try:
        from distributed import Client
        from distributed.security import Security
    except ImportError as error:
        raise Refused(
            f"--cluster {address} needs distributed, which is not installed", hint="pip install 'bucketworks[cluster]'"
        ) from error
    find_security: Any = Security
    if address.startswith("tls:") and find_security().get_connection_args("client").get("ssl_context") is None:
        raise Refused(
            f"--cluster {address} needs a certificate, and Dask's configuration names none",
            hint="set distributed.comm.tls.ca-file and distributed.comm.tls.client there",
        )
    try:
        # What it has to say of connections is said by our errors; it would add tracebacks.
        logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
        connect: Any = Client
        return connect(address, timeout=CONNECT_S, name="cowsync", set_as_default=False)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise ClusterUnavailable(
            f"no Dask scheduler answers at {address}: {error}",
            hint="nothing was changed; check the address and that both run the same version of distributed",
        ) from error


def _asked(client: Any) -> dict[str, object]:
    """What the scheduler, which unpacks what it passes on, and every worker answer to `versions`; nothing without workers."""
    workers: dict[str, object] = client.run(versions, on_error="return")
    if not workers:
        return {}
    try:
        return {"(the scheduler)": client.run_on_scheduler(versions), **workers}
    except Exception as error:  # noqa: BLE001 - whatever it is, it cannot; the caller says so
        return {"(the scheduler)": error}


def _here() -> str:
    from distributed import get_worker

    return f"{get_worker().address} on {platform.node()}"
