"""Asks everything on this host how it is: providers give looks, looks run beside each other, and none is waited for too long.

One rule: a report comes within its deadline and never raises. A look that fails is `unknown` with the reason; one that has
not answered in time is `unknown` too, and is not begun again while it hangs, so that a store that never answers costs one
thread and not one for each report.

Packages above this one bring providers as entry points of the group `bucketworks.status`; those that count requests by
themselves bring accounts in the group `bucketworks.spending`.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from itertools import islice
from pathlib import Path
from typing import Final

from s3core.settings import Config
from s3core.spending import Account
from s3core.status import Item, in_order, unknown

GROUP: Final = "bucketworks.status"
SPENDING_GROUP: Final = "bucketworks.spending"
AT_ONCE: Final = 64
LOOKS_MAX: Final = 2000
KINDS: Final = ("endpoint", "volume", "mirror", "ledger", "storage", "console")
"""In the order they are shown; others come behind."""
NAMELESS: Final = "-"
"""The name of what stands for all of a kind."""


@dataclass(frozen=True, slots=True)
class Look:
    """One thing that can be asked. `ask` may block and may raise; it gives an item of that kind and name."""

    kind: str
    name: str
    ask: Callable[[], Item]


Provider = Callable[[Config], Iterable[Look]]
"""What there is of one kind, as configuration and state directories have it. May block and raise as a look may."""
Accounts = Callable[[Config, str], Iterable[Account]]
"""What a tool has counted by itself in a month."""


class InstalledProvider:
    """That of an entry point, imported when it is first needed."""

    def __init__(self, point: EntryPoint) -> None:
        self._point = point
        self._provider: Provider | None = None
        self._problem: Exception | None = None

    def load(self) -> None:
        """Import it. Never raises: a package that is broken is told as unknown, with the reason."""
        if self._provider is None:
            try:
                self._provider, self._problem = self._point.load(), None
            except Exception as error:  # noqa: BLE001 - whatever is wrong with one package, the others are told
                self._problem = error

    def __call__(self, config: Config) -> Iterable[Look]:
        self.load()
        if self._provider is None:
            raise RuntimeError(f"{self._point.value} cannot be imported: {self._problem}") from self._problem
        return self._provider(config)


class Collector:
    """Of one process. `collect` may be called again and again; by one thread at a time."""

    def __init__(self, providers: Mapping[str, Provider], *, now: Callable[[], float] = time.monotonic) -> None:
        self._providers = dict(providers)
        self._now = now
        self._lock = threading.Lock()
        self._began: dict[tuple[str, str], float] = {}
        """What is under way, since when; under `_lock`."""
        self._room = threading.BoundedSemaphore(AT_ONCE)

    def collect(self, config: Config, deadline_s: float) -> tuple[Item, ...]:
        """How everything is, as far as it answers in that time; in order of kinds and names. The time begins when the installed
        packages are imported: that waits for this host's processors and for no store, and a busy host is not an ill one."""
        for one in self._providers.values():
            if isinstance(one, InstalledProvider):
                one.load()
        asked = [
            (kind, NAMELESS, lambda provider=provider: list(islice(provider(config), LOOKS_MAX + 1)))
            for kind, provider in self._providers.items()
        ]
        return self._answers(asked, deadline_s)

    def ask(self, look: Look, deadline_s: float) -> Item:
        """One look alone, in the same way."""
        return self._answers([(look.kind, look.name, look.ask)], deadline_s)[0]

    def _answers(self, asked: Iterable[tuple[str, str, Callable[[], object]]], deadline_s: float) -> tuple[Item, ...]:
        until = self._now() + deadline_s
        answers: queue.SimpleQueue[tuple[tuple[str, str], object]] = queue.SimpleQueue()
        waiting: set[tuple[str, str]] = set()
        items: dict[tuple[str, str], Item] = {}

        def begin(kind: str, name: str, ask: Callable[[], object]) -> None:
            key = kind, name
            since = self._claim(key)
            if since is not None:
                items[key] = unknown(
                    kind, name, f"no answer for {self._now() - since:.0f} s", "runbook/store-unreachable.md"
                )
                return
            waiting.add(key)
            threading.Thread(
                target=self._run, args=(key, ask, answers), name=f"status {kind} {name}", daemon=True
            ).start()

        for one in asked:
            begin(*one)
        while waiting:
            try:
                key, answer = answers.get(timeout=max(0.0, until - self._now()))
            except queue.Empty:
                break
            if key not in waiting:
                continue
            waiting.discard(key)
            if isinstance(answer, Item):
                items[key] = answer
            elif isinstance(answer, list):
                for look in answer[:LOOKS_MAX]:
                    begin(look.kind, look.name, look.ask)
                if len(answer) > LOOKS_MAX:
                    items[key] = unknown(key[0], NAMELESS, f"there are more than {LOOKS_MAX:,}; these are the first")
            else:
                items[key] = unknown(*key, _reason(answer))
        for kind, name in waiting:
            reason = f"no answer within {deadline_s:g} s"
            items[kind, name] = unknown(kind, name, reason, "runbook/store-unreachable.md")
        return tuple(sorted(items.values(), key=lambda one: (_rank(one.kind), one.kind, in_order(one.name))))

    def _claim(self, key: tuple[str, str]) -> float | None:
        """None where it may be begun, and counts as begun now; else since when it is under way."""
        with self._lock:
            since = self._began.get(key)
            if since is None:
                self._began[key] = self._now()
            return since

    def _run(
        self,
        key: tuple[str, str],
        ask: Callable[[], object],
        answers: "queue.SimpleQueue[tuple[tuple[str, str], object]]",
    ) -> None:
        with self._room:
            try:
                answer = ask()
            except Exception as error:  # noqa: BLE001 - whatever is wrong with one thing, the others are told
                answer = error
        with self._lock:
            self._began.pop(key, None)
        answers.put((key, answer))


def _reason(error: object) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _rank(kind: str) -> int:
    return KINDS.index(kind) if kind in KINDS else len(KINDS)


def installed_providers() -> dict[str, Provider]:
    """Those of the installed packages, by the names of their entry points, and the endpoints' own."""
    from s3core.status_endpoints import endpoint_looks

    providers: dict[str, Provider] = {"endpoint": endpoint_looks}
    return providers | {point.name: InstalledProvider(point) for point in _points(GROUP) if point.name != "endpoint"}


def installed_accounts(config: Config, month: str) -> tuple[list[Account], list[str]]:
    """What tools counted by themselves, and why some could not be asked."""
    found: list[Account] = []
    problems = []
    for point in _points(SPENDING_GROUP):
        try:
            found += point.load()(config, month)
        except Exception as error:  # noqa: BLE001 - a tool that cannot tell keeps nothing else from being told
            problems.append(f"{point.name}: {_reason(error)}")
    return found, problems


def _points(group: str) -> Sequence[EntryPoint]:
    return sorted(entry_points(group=group), key=lambda point: point.name)


def readable_directory(path: Path) -> bool:
    """Whether there is such a folder; PermissionError, which says whom to ask as, where this user may not look."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    next(path.iterdir(), None)
    return path.is_dir()
