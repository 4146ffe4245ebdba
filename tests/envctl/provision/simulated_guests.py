"""Agents without guests: a thread that does, in the database, what an agent would do through the console.

A machine that runs and was given a seed enrols, brings its home back and obeys `backup`; one that is off does nothing. What it
says is written by the same rows as the guest API writes. What a hypervisor destroyed is gone.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy import select

from envctl.database.access import Database
from envctl.database.models import Backup, Environment, Guest, GuestCommand
from envctl.homes.requests import hash_of

Running = Callable[[], dict[str, str]]
"""SMBIOS UUID and seed address of each machine that runs now."""


@dataclass
class SimulatedGuests:
    database: Database
    running: Running
    poll_s: float = 0.01
    restore_s: float = 0.0
    mute: bool = False
    """Agents say nothing."""
    hold_boots: bool = False
    """None reports after a start; those that have reported obey orders."""
    hold_restores: bool = False
    hold_orders: bool = False
    backups_fail: bool = False
    final_backups: int = 0
    errors: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> "SimulatedGuests":
        self._thread = threading.Thread(target=self._run, name="guests", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        assert self._thread is not None
        self._thread.join(10)
        assert not self.errors, self.errors

    def _run(self) -> None:
        while not self._stop.wait(self.poll_s):
            try:
                if not self.mute:
                    self.turn()
            except Exception as error:  # noqa: BLE001 - shown by __exit__, in the test's own thread
                self.errors.append(f"{type(error).__name__}: {error}")
                return

    def turn(self) -> None:
        """What all running machines do once."""
        machines = self.running()
        if not machines:
            return
        now = time.time()
        with self.database.write() as session:
            for guest in session.scalars(select(Guest).where(Guest.revoked_at.is_(None))):
                if guest.machine_uuid not in machines:
                    continue
                token = machines[guest.machine_uuid].rstrip("/").rpartition("/")[2]
                if guest.enrolled_at is None and self.hold_boots:
                    continue
                if guest.enrolled_at is None:
                    if guest.seed_hash is None or guest.seed_hash != hash_of(token) or guest.seed_expires_at < now:
                        continue
                    guest.public_key, guest.enrolled_at, guest.seed_hash = "00" * 32, now, None
                if not self.hold_boots:
                    guest.seen_at = now
                guest.status = {"phase": "restoring", "progress": 0.5}
                if not self.hold_restores and guest.restored_at is None and now - guest.enrolled_at >= self.restore_s:
                    guest.restored_at = now
                    guest.status = {"phase": "idle", "logins": 0}
                if self.hold_orders:
                    continue
                for command in session.scalars(
                    select(GuestCommand).where(
                        GuestCommand.environment_id == guest.environment_id,
                        GuestCommand.generation == guest.generation,
                        GuestCommand.ended_at.is_(None),
                    )
                ):
                    self._obey(session.get_one(Environment, guest.environment_id), guest, command, now, session.add)

    def _obey(
        self, environment: Environment, guest: Guest, command: GuestCommand, now: float, add: Callable[[object], None]
    ) -> None:
        command.taken_at = command.ended_at = now
        if self.backups_fail or guest.restored_at is None:
            command.ok, command.answer = False, {"message": "the bucket does not answer"}
            return
        number = (environment.last_backup_number or 0) + 1
        environment.last_backup_at, environment.last_backup_number = now, number
        figures = dict.fromkeys(("files", "bytes", "added", "changed", "removed", "new_bytes", "fuzzy"), 1)
        add(
            Backup(
                environment_id=environment.id,
                number=number,
                at=now,
                generation=guest.generation,
                kind=str(command.parameters.get("kind")),
                **figures,
            )
        )
        command.ok, command.answer = True, {"number": number}
        self.final_backups += 1
