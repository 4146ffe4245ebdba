"""What is done to volumes as a whole, told to the ledger that covers their place: by the daemon, by commands, by sessions.

One rule: a volume that is attached goes on whatever becomes of its ledger: what its worker tells of is queued, and lost
(counted and logged) where the ledger cannot take it. A command that makes or removes a volume, or changes who may open it,
holds up nobody: it records its intent first, and does nothing where it cannot.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from blockdev.errors import Refused
from blockdev.segments import paths
from integrity.coverage import key_prefix
from integrity.recording import ControlEvents, Recorder, recorder_for
from s3core.console import command_name
from s3core.settings import Config


def events_for(config: Config, store_url: str, name: str, *, tool: str) -> ControlEvents | None:
    """What takes the events of an attached volume; None where no ledger covers it. The caller closes it."""
    recorder = _recorder(config, store_url, name, tool)
    return ControlEvents(recorder, _key(store_url, name), {"volume": name}) if recorder is not None else None


@contextmanager
def recorded(config: Config, store_url: str, name: str, event: str, **detail: object) -> Iterator[None]:
    """Around what a command does to a volume: intent before, outcome after it. NotRecorded before anything is done. After an
    error other than Refused the outcome is `unknown`: it may be done in part."""
    recorder = _recorder(config, store_url, name, command_name() or "s3block")
    if recorder is None:
        yield
        return
    try:
        told = {"volume": name, "event": event} | detail
        with recorder.action("control", _key(store_url, name), refusals=(Refused,), detail=told):
            yield
    finally:
        recorder.close()


def _recorder(config: Config, store_url: str, name: str, tool: str) -> Recorder | None:
    recorder = recorder_for(store_url, config, tool=tool)
    if recorder is not None and not recorder.covers(_key(store_url, name)):
        recorder.close()
        return None
    return recorder


def _key(store_url: str, name: str) -> str:
    """What the volume's keys begin with in the bucket: events are found by it as its objects are."""
    return f"{key_prefix(store_url)}{paths.volume_prefix(name)}"
