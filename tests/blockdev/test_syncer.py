"""Flushes are grouped, answered on the front's thread, and never by an fdatasync that began too early."""

import threading
from collections.abc import Callable
from queue import SimpleQueue

from blockdev.engine.syncer import InlineSyncer, ThreadSyncer
from blockdev.errors import LocalDiskFailed
from tests.blockdev.memory_file import MemoryFile
from tests.blockdev.test_journal import new_journal, write

Answer = tuple[int, LocalDiskFailed | None]


class SlowFile(MemoryFile):
    """fdatasync waits for the test, except while `open` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Semaphore(0)

    def fdatasync(self) -> None:
        self.entered.release()
        assert self.open.wait(10)
        super().fdatasync()


def drain(posted: "SimpleQueue[Callable[[], None]]", answers: list[Answer], count: int) -> None:
    while len(answers) < count:
        posted.get(timeout=10)()


def test_what_waits_shares_one_fdatasync() -> None:
    file = SlowFile()
    journal = new_journal(file)
    posted: SimpleQueue[Callable[[], None]] = SimpleQueue()
    answers: list[Answer] = []

    def done(position: int, failure: LocalDiskFailed | None) -> None:
        answers.append((position, failure))

    syncer = ThreadSyncer(journal, posted.put)
    write(journal, 0, bytes(512))
    journal.append()
    first = journal.head
    while file.entered.acquire(blocking=False):
        pass
    file.open.clear()
    before = file.syncs
    syncer.sync(done)
    assert file.entered.acquire(timeout=10), "the flush thread has begun"
    write(journal, 1, bytes(512))
    journal.append()
    for _ in range(5):
        syncer.sync(done)
    assert syncer.busy
    file.open.set()
    drain(posted, answers, 6)
    assert answers == [(first, None)] + [(journal.head, None)] * 5
    assert file.syncs == before + 2
    assert not syncer.busy
    syncer.close()


def test_a_failed_fdatasync_is_not_tried_again() -> None:
    file = MemoryFile(name="here")
    journal = new_journal(file)
    posted: SimpleQueue[Callable[[], None]] = SimpleQueue()
    answers: list[Answer] = []
    syncer = ThreadSyncer(journal, posted.put)
    file.fail_syncs = True
    syncs = file.syncs
    for count in (1, 2, 3):
        syncer.sync(lambda position, failure: answers.append((position, failure)))
        drain(posted, answers, count)
        file.fail_syncs = False  # the disk seems well again, which proves nothing
    syncer.close()
    assert file.syncs == syncs + 1
    assert ["cannot sync journal here" in str(failure) for _, failure in answers] == [True] * 3


def test_closing_finishes_what_is_queued() -> None:
    journal = new_journal()
    posted: SimpleQueue[Callable[[], None]] = SimpleQueue()
    answers: list[Answer] = []
    syncer = ThreadSyncer(journal, posted.put)
    syncer.sync(lambda position, failure: answers.append((position, failure)))
    syncer.close()
    drain(posted, answers, 1)
    assert answers == [(journal.head, None)]


def test_inline_answers_before_it_returns() -> None:
    file = MemoryFile()
    journal = new_journal(file)
    write(journal, 0, bytes(512))
    journal.append()
    answers: list[Answer] = []
    syncer = InlineSyncer(journal)
    syncer.sync(lambda position, failure: answers.append((position, failure)))
    assert answers == [(journal.head, None)]
    write(journal, 0, bytes(512))
    journal.append()
    file.fail_syncs = True
    syncer.sync(lambda position, failure: answers.append((position, failure)))
    assert isinstance(answers[1][1], LocalDiskFailed)
    syncer.close()
