"""Operations on a volume from a command: through the daemon that serves it, or by attaching it here for a moment.

One rule: whoever holds the state directory's lock does it. While a daemon serves the volume, it is asked over its control
socket. Otherwise `Session` takes the lock, runs the volume's worker inside this process, carries what the journal holds to
the bucket, operates, and detaches in order.

What a crash, a second Ctrl-C or a lost store leaves: a volume that counts as attached here, with its journal in the
state directory. The next session or `s3block serve` on this host goes on from it.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

from blockdev import keys
from blockdev.arguments import secret_of
from blockdev.control import ControlClient, NotServed, rebuilt_error
from blockdev.engine import link
from blockdev.engine.assembly import Assembly, Orders, assemble
from blockdev.engine.ports import ThreadExecution
from blockdev.engine.state_directory import StateDirectory
from blockdev.errors import BlockError, NotReady
from blockdev.events import events_for
from blockdev.journal.journal import Journal, open_journal
from blockdev.place import VolumePlace
from blockdev.segments.key_slot import Secret
from blockdev.segments.volume_file import VolumeFile
from blockdev.units import MIB
from integrity.recording import ControlEvents
from s3core.console import command_name
from s3core.errors import StoreError
from s3core.settings import Config
from s3core.store import ObjectStore

T = TypeVar("T")

log = logging.getLogger(__name__)

THREADS = 16
LEASE_S = 60.0
"""Nothing is acknowledged from here to anybody who goes on after this process; a host that takes over waits that long."""
JOURNAL_BYTES = 16 * MIB
"""Of the journal that a session makes where there is none to go on with; it is removed after an orderly end."""
ATTACH_PATIENCE_S = 1800.0
"""Reading the log, waiting out another host's lease (ten minutes, if it did not say otherwise), carrying a full journal to
the bucket."""
OPERATE_PATIENCE_S = 600.0
DETACH_PATIENCE_S = 60.0


class Operator(Protocol):
    """A volume that takes operations."""

    served: bool
    """A daemon has it attached, and initiators may be using it."""

    def operate(self, name: str, /, **arguments: Any) -> dict[str, Any]:
        """Carry out the operation and return its result, durable in the bucket. Raises what it met (BlockError, store
        errors); NotReady when it takes longer than the patience allows: then it may still be done or not."""
        ...


class _Served:
    """`Operator` through the daemon's control socket."""

    served = True

    def __init__(self, client: ControlClient) -> None:
        self._client = client

    def operate(self, name: str, /, **arguments: Any) -> dict[str, Any]:
        return self._client.ask(name, **arguments)


@contextmanager
def reach(place: VolumePlace, config: Config, *, state_dir: Path | None = None) -> Iterator[Operator]:
    """The volume, served or not. `state_dir`: the volume's own, if not the configured one. Raises AttachRefused (its last
    writer was another host and did not detach; a command or a starting daemon has it just now), and what attaching
    raises."""
    directory = place.state_dir if state_dir is None else state_dir
    try:
        client = ControlClient(directory, timeout_s=OPERATE_PATIENCE_S)
    except NotServed:
        with Session(place, config, state_dir=directory) as session:
            yield session
        return
    with client:
        yield _Served(client)


def operate(
    place: VolumePlace, config: Config, name: str, arguments: dict[str, Any], *, state_dir: Path | None = None
) -> dict[str, Any]:
    """One operation, wherever the volume is attached. Raises like `reach` and `Operator.operate`."""
    with reach(place, config, state_dir=state_dir) as volume:
        return volume.operate(name, **arguments)


class Session:
    """A volume attached by this process, as a context. On entering, all that the journal held is in the bucket.

    `accept_loss`: also where the journal with the last acknowledged writes is gone; they are lost then. `outwait` False:
    somebody vouches that the host that had the volume is off, and its lease is not waited for. Leaving detaches, after an
    error too; when that does not succeed, the volume stays attached here."""

    served = False

    def __init__(
        self,
        place: VolumePlace,
        config: Config,
        *,
        state_dir: Path | None = None,
        accept_loss: bool = False,
        outwait: bool = True,
        attach_patience_s: float = ATTACH_PATIENCE_S,
        operate_patience_s: float = OPERATE_PATIENCE_S,
        detach_patience_s: float = DETACH_PATIENCE_S,
    ) -> None:
        self._place = place
        self._config = config
        self._accept_loss = accept_loss
        self._outwait = outwait
        self._attach_patience_s = attach_patience_s
        self._operate_patience_s = operate_patience_s
        self._detach_patience_s = detach_patience_s
        self._directory = StateDirectory((place.state_dir if state_dir is None else state_dir).absolute())
        self._lock = -1
        self._events: ControlEvents | None = None
        self._secret: Secret | None = None
        self._execution = ThreadExecution(THREADS)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="session", daemon=True)
        # What follows belongs to the loop's thread.
        self._assembly: Assembly | None = None
        self._journal: Journal | None = None
        self._journal_made = False
        self._running: asyncio.Task[None] | None = None
        self._ready: link.Ready | None = None
        self._durable = 0
        self._detached = False
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._next_id = 1
        self._news = asyncio.Event()

    # --- the command's side --------------------------------------------------------------------------------------

    def __enter__(self) -> "Session":
        self._secret = secret_of(self._place)
        self._directory.prepare()
        self._lock = self._directory.lock()
        self._thread.start()
        tool = command_name() or "s3block"
        try:
            self._events = events_for(self._config, self._place.store_url, self._place.name, tool=tool)
            self._wait(self._attach(), self._attach_patience_s, "attached")
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._wait(self._detach(), self._detach_patience_s, "detached")
        except (BlockError, StoreError) as problem:
            if error is None:
                raise
            log.warning("volume %s: %s", self._place.name, problem)
        finally:
            self._close()

    @property
    def volume(self) -> VolumeFile:
        assert self._assembly is not None
        return self._assembly.volume

    @property
    def ready(self) -> link.Ready:
        """What attaching brought: epoch, commit, size."""
        assert self._ready is not None
        return self._ready

    def operate(self, name: str, /, **arguments: Any) -> dict[str, Any]:
        return self._wait(self._operate(name, arguments), self._operate_patience_s, f"done with {name}")

    def _wait(self, work: Coroutine[Any, Any, T], patience_s: float, what: str) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(patience_s)
        except TimeoutError as error:
            if future.done():  # what the work itself met, not our patience
                raise
            future.cancel()
            raise NotReady(
                f"volume {self._place.name} was not {what} within {patience_s:g} s",
                hint=f"is the store reachable? Nothing is lost: what the bucket lacks is in {self._directory.journal_path}",
            ) from error
        except BaseException:
            future.cancel()
            raise

    def _close(self) -> None:
        """Give everything back. A worker that did not detach is dropped: what counts is in the journal and the log."""
        try:
            asyncio.run_coroutine_threadsafe(self._drop(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._execution.close(wait=True)  # nobody may be reading the map when it is closed
            if self._journal is not None:
                self._journal.close()
            if self._assembly is not None:
                self._assembly.close()
                if self._detached and self._journal_made:
                    self._assembly.journal.remove()
        finally:
            os.close(self._lock)
            if self._events is not None:
                self._events.close()

    # --- on the loop ---------------------------------------------------------------------------------------------

    async def _attach(self) -> None:
        settings = self._place.settings
        orders = Orders(
            config="",
            store_url=self._place.store_url,
            name=self._place.name,
            state_dir=str(self._directory.path),
            journal_bytes=JOURNAL_BYTES,
            objects_bytes=(settings.cache_bytes or 0) // 4,
            commit_bytes=settings.commit_bytes,
            commit_interval_s=settings.commit_interval_s,
            accept_loss=self._accept_loss,
            take_over=False,
            outwait=self._outwait,
            flush=settings.flush,
            lease_s=LEASE_S,
            unfenced=settings.unfenced,
            log_level="",
            log_format="",
            cache_file=str(self._directory.cache_path / "cache"),
        )
        self._assembly = assembly = await assemble(orders, self._config, self._execution, self._receive, self._unlock)
        before = assembly.journal.identity()
        await assembly.worker.start()
        assert self._ready is not None
        ready = self._ready
        self._durable = ready.position
        self._journal_made = assembly.journal.identity() != before
        self._journal = await self._execution.run(open_journal, self._directory.journal_path)
        await self._execution.run(self._journal.take_up, ready.position, ready.epoch, _nothing)
        self._running = asyncio.create_task(assembly.worker.run())
        await self._carry()

    def _unlock(self, own: ObjectStore, volume: VolumeFile) -> bytes:
        return keys.unlock(own, volume, self._secret)

    def _receive(self, message: link.ToFront) -> None:
        """What the worker tells; called on the loop."""
        match message:
            case link.Ready():
                self._ready = message
            case link.Durable(position):
                self._durable = position
            case link.Detached():
                self._detached = True
            case link.Happened(event, detail):
                if self._events is not None:
                    self._events(event, detail)
            case link.Operated():
                answer = self._answers.pop(message.id, None)
                if answer is not None and not answer.done():
                    if message.kind:
                        answer.set_exception(rebuilt_error(message.kind, message.error))
                    else:
                        answer.set_result(message.result)
            case link.Failed():
                for answer in self._answers.values():
                    if not answer.done():
                        answer.set_exception(self._failure())
                self._answers.clear()
        self._news.set()

    def _failure(self) -> Exception:
        """Why the worker stopped."""
        assert self._assembly is not None
        failure = self._assembly.worker.failure
        if isinstance(failure, Exception):
            return failure
        return NotReady(f"volume {self._place.name}: the worker has stopped", hint="see its last log lines")

    async def _until(self, test: Callable[[], bool]) -> None:
        """Wait for news until `test` holds. Raises what stopped the worker."""
        assert self._running is not None
        while not test():
            if self._running.done():
                raise self._failure()
            self._news.clear()
            news = asyncio.ensure_future(self._news.wait())
            try:
                await asyncio.wait({news, self._running}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                news.cancel()

    async def _carry(self) -> None:
        """Everything that is in the journal goes to the bucket."""
        assert self._assembly is not None
        assert self._journal is not None
        head = self._journal.head
        if head > self._durable:
            self._assembly.worker.receive(link.Appended(head))
            self._assembly.worker.receive(link.CommitNow(head))
            await self._until(lambda: self._durable >= head)

    async def _operate(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        assert self._assembly is not None
        assert self._running is not None
        if self._running.done():
            raise self._failure()
        number, self._next_id = self._next_id, self._next_id + 1
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        self._assembly.worker.receive(link.Operate(number, name, arguments))
        return await answer

    async def _detach(self) -> None:
        assert self._assembly is not None
        assert self._journal is not None
        assert self._running is not None
        self._assembly.worker.receive(link.Appended(self._journal.head))
        self._assembly.worker.receive(link.Detach())
        await self._until(lambda: self._detached)
        await self._running

    async def _drop(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


def _nothing(record: object) -> None:
    """For a journal whose records are only carried, not served."""
