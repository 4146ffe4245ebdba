"""What the agent does over time: enrol, restore, then take commands and save the home, until it is fenced.

One rule: whatever goes wrong is told (status, heartbeat) and tried again; only being fenced ends it, and then for good: the
units are disabled, and the status says so to whoever sits in the machine.
"""

from __future__ import annotations

import base64
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, Final

from envctl.agent import enrolment, memory, status
from envctl.agent.backup import Backup, Done, Settings, left_out
from envctl.agent.client import Allowance, Console, World
from envctl.agent.errors import AgentError, Fenced, Moved, NotRestored, Refused, Unavailable
from envctl.agent.places import Places
from envctl.agent.restore import PLACE, Restore, path_of, sweep

WAIT_S: Final = 25
LOCK_WAIT_S: Final = 3600.0
LOCK_WAIT_FENCED_S: Final = 60.0
HEARTBEAT_S: Final = 60.0
PROGRESS_S: Final = 5.0
"""How often the console is told how far a restore or a backup is."""
PAUSE_S: Final = 5.0
PAUSE_S_MAX: Final = 60.0
SCANS_MAX: Final = 3
"""How often a backup is begun anew when the tree moved under it, or when the console has another head."""
JITTER: Final = 0.1
UNITS: Final = ("envctl-backup.timer", "envctl-final.service", "envctl-agent.service")


class Service:
    def __init__(
        self, places: Places, world: World, *, version: str, reached: Callable[[str], None] = lambda point: None
    ) -> None:
        self._places = places
        self._world = world
        self._version = version
        self._reached = reached
        self._known = memory.load(places)
        self._console: Console | None = None
        self._phase = "starting"
        self._message = ""
        self._progress = 0.0
        self._told_at = self._beat_at = 0.0
        self._login_user = ""
        self._ssh_keys: list[str] = []
        self._lock: Callable[[float], AbstractContextManager[bool]] | None = None
        """How to get the lock; None while this process holds it."""

    # What the units call

    def restore_until_done_or_later(self) -> bool:
        """One attempt at the restore. True when the home is there and the console knows; False: try again. Fenced."""
        try:
            self.restore()
            return True
        except Fenced as error:
            self._fenced(error)
            raise
        except (AgentError, OSError, ValueError, KeyError) as error:
            self._failed("restoring", error)
            if self._console is not None:
                # Whoever waits for the machine at the console sees why.
                with suppress(Fenced):
                    self._heartbeat(self._console)
            return False

    def restore(self) -> None:
        """Enrol where that was not done, bring the home back, tell the console. Does nothing that is done already."""
        self._known = memory.load(self._places)
        console = self._enrolled()
        if self._known.restored and not self._known.restoring:
            self._phase = "ready"
            self._tell()
            try:
                self._confirm(console, attempts=1)
            except Unavailable as error:
                # The home is here: a console that is away keeps nobody out. `run` says so again.
                self._message = str(error)
            return
        self._phase = "restoring"
        self._tell()
        state = console.get("/guest/v1/state")
        self._take_settings(state.get("settings"))
        wanted = state.get("restore") or {}
        number, trees, source = wanted.get("number"), list(wanted.get("trees") or []), wanted.get("from")
        restore = Restore(
            self._places, console, self._known, self._world, reached=self._reached, progress=self._has_progress
        )
        begun = self._known.restoring
        is_same = bool(begun) and (begun["number"], begun["trees"], begun["source"]) == (number, trees, source)
        done = restore.resume() if begun and (is_same or begun["asked"]) else None
        if done is None:
            done = restore.home(number, trees, source, state.get("head"))
        self._known.last_error = "; ".join(done.problems[:5])
        memory.save(self._places, self._known)
        if self._login_user and self._ssh_keys:
            # The home that came back may be from before a key was given to the console.
            self._authorize()
        console.post(
            "/guest/v1/restored",
            {
                "number": number,
                "files": done.files,
                "bytes": done.bytes,
                "seconds": done.seconds,
                **self._left_out(),
            },
        )
        self._phase, self._message = "ready", ""
        self._tell()

    def _confirm(self, console: Console, *, attempts: int = 5) -> None:
        """The console knows that the home is here, where it is."""
        state = console.get("/guest/v1/state", attempts=attempts)
        self._take_settings(state.get("settings"))
        wanted = state.get("restore") or {}
        if self._known.restored and not wanted.get("done"):
            # A home of an older snapshot is one that was told to be so; `number` is what the next one comes after.
            number = wanted.get("number")
            if number not in (self._known.number, self._known.restored_number):
                number = self._known.number
            body = {"number": number, "files": 0, "bytes": 0, "seconds": 0, **self._left_out()}
            console.post("/guest/v1/restored", body)

    def _left_out(self) -> dict[str, Any]:
        """What of the snapshot is not here, for `restored`: the console keeps the snapshot then."""
        paths = [base64.b64encode(os.fsencode(path)).decode("ascii") for path in self._known.left_out]
        return {"left_out": paths, "left_out_count": self._known.left_out_count}

    def is_due(self) -> bool:
        """Whether the interval is over, with a tenth of it of chance, so that many machines do not come at once."""
        self._known = memory.load(self._places)
        if self._known.fenced or not self._known.restored or self._known.restoring:
            return False
        interval_s = Settings.of(self._known.settings).interval_s
        chance = (self._world.random(1)[0] / 255 - 0.5) * 2 * JITTER
        passed_s = self._world.time() - max(self._known.last_backup_at, self._known.refused_at)
        # A clock that was put back must not put off backups.
        return passed_s < 0 or passed_s >= interval_s * (1 + chance)

    def backup(self, kind: str, command: str | None = None) -> Done:
        """Save the home. As `Backup.run`; what goes wrong is told before it is raised."""
        self._known = memory.load(self._places)
        if self._known.fenced:
            self._fenced(Fenced(self._known.fenced))
            raise Fenced(self._known.fenced)
        if not self._known.restored or self._known.restoring:
            raise NotRestored("the home is not restored: saving it now would save an empty one over it")
        console = self._enrolled()
        settings = Settings.of(self._known.settings)
        console.rate = Allowance(settings.bandwidth_bytes_per_s, time.monotonic, time.sleep)
        sweep(self._places, settings.roots())
        self._phase, self._message = "saving", ""
        self._tell()
        try:
            for attempt in range(1, SCANS_MAX + 1):
                run = Backup(
                    self._places,
                    console,
                    self._known,
                    self._world,
                    reached=self._reached,
                    progress=self._has_progress,
                )
                try:
                    done = run.run(kind, command=command, status={**self._status(), "last_error": ""})
                    break
                except Moved:
                    if attempt == SCANS_MAX:
                        raise
                except NotRestored:
                    # It was restored, and the console did not hear of it.
                    if attempt == SCANS_MAX:
                        raise
                    self._confirm(console)
        except Fenced as error:
            self._fenced(error)
            raise
        except (AgentError, OSError, ValueError) as error:
            if isinstance(error, Refused) and error.code == "invalid":
                self._known.refused_at = self._world.time()
            self._failed("ready", error)
            self._heartbeat(console)
            raise
        self._phase, self._message = "ready", "; ".join(done.problems[:5])
        self._tell()
        return done

    def run(self, locked: Callable[[float], AbstractContextManager[bool]]) -> None:
        """Take commands until the process is ended, or this machine is fenced (then return)."""
        self._lock = locked
        pause_s = PAUSE_S
        heard_at = 0.0
        confirmed = False
        while True:
            try:
                console = self._enrolled()
                if not confirmed or self._known.restoring:
                    self._known = memory.load(self._places)
                    if self._known.restoring:
                        with self._alone(LOCK_WAIT_S) as held:
                            if not held:
                                raise Unavailable("another run is under way for an hour")
                            self.restore()
                    self._confirm(console)
                    confirmed = True
                answer = console.get(f"/guest/v1/commands?wait={WAIT_S}", timeout_s=WAIT_S + 15.0, attempts=1)
                for command in answer.get("commands", []):
                    self._obey(console, command)
                if not 0 <= self._world.time() - heard_at < HEARTBEAT_S:
                    self._known = memory.load(self._places)
                    self._take_settings(self._heartbeat(console))
                    heard_at = self._world.time()
                pause_s = PAUSE_S
            except Fenced as error:
                self._fenced(error)
                return
            except (AgentError, OSError, ValueError) as error:
                self._message = str(error)
                self._world.sleep(pause_s)
                pause_s = min(2 * pause_s, PAUSE_S_MAX)

    # Commands

    def _obey(self, console: Console, command: dict[str, Any]) -> None:
        """Do what was asked, and answer, whatever came of it."""
        what = dict(command.get("parameters") or {})
        try:
            with self._alone(LOCK_WAIT_S) as held:
                if not held:
                    raise Unavailable("another run is under way for an hour")
                if command["kind"] == "backup":
                    done = self.backup(str(what.get("kind") or "asked"), command["id"])
                    answer: dict[str, Any] = {"number": done.number, "unchanged": done.unchanged, "stats": done.stats}
                elif command["kind"] == "restore":
                    answer = self._restore_as_asked(console, what)
                else:
                    raise Refused(f"{command['kind']!r} is no command this agent knows", "unknown", 422, {})
            ok = True
        except Fenced:
            raise
        except (AgentError, OSError, ValueError, KeyError) as error:
            ok, answer = False, {"message": str(error)}
        console.post(f"/guest/v1/commands/{command['id']}", {"ok": ok, "answer": answer})

    def _restore_as_asked(self, console: Console, what: dict[str, Any]) -> dict[str, Any]:
        paths = [path_of(text) for text in what["paths"]] if what.get("paths") is not None else None
        into = str(what.get("into") or PLACE)
        safety = None
        if into == PLACE:
            safety = self.backup("safety").number
        self._known = memory.load(self._places)
        self._phase = "restoring"
        self._tell()
        restore = Restore(
            self._places, console, self._known, self._world, reached=self._reached, progress=self._has_progress
        )
        try:
            done = restore.chosen(int(what["number"]), list(what["trees"]), what.get("from"), paths, into)
        finally:
            self._phase = "ready"
            self._tell()
        return {
            "files": done.files,
            "bytes": done.bytes,
            "safety": safety,
            "message": "; ".join(done.problems[:5]),
        }

    # Parts

    @contextmanager
    def _alone(self, wait_s: float) -> Iterator[bool]:
        """Hold the lock, and know what the last holder wrote; False where another process has it for longer than `wait_s`."""
        lock = self._lock
        if lock is None:
            yield True
            return
        with lock(wait_s) as held:
            if held:
                self._known = memory.load(self._places)
                self._lock = None
            try:
                yield held
            finally:
                self._lock = lock

    def _enrolled(self) -> Console:
        if self._known.fenced:
            raise Fenced(self._known.fenced)
        if self._console is not None:
            return self._console
        try:
            who, seed, answer = enrolment.identity(self._places, self._world, self._version)
        except Fenced as error:
            self._fenced(error)
            raise
        self._login_user = str(seed.get("login_user") or "")
        self._ssh_keys = [str(key) for key in seed.get("ssh_keys") or []]
        if (self._known.environment, self._known.generation) != (who.environment, who.generation):
            # Another machine than the one this state is of (a disk that was copied): its home is not known to be here.
            with self._alone(LOCK_WAIT_S) as held:
                if not held:
                    raise Unavailable("another run is under way for an hour")
                self._known = memory.Memory(environment=who.environment, generation=who.generation)
                memory.save(self._places, self._known)
        if answer is not None:
            self._take_settings(answer.get("settings"))
        self._console = Console(seed["console"], self._world, identity=who, ca_pem=str(seed.get("ca_pem") or ""))
        return self._console

    def _take_settings(self, settings: Any) -> None:
        if not isinstance(settings, dict) or not settings or settings == self._known.settings:
            return
        with self._alone(0.0) as held:
            # Whoever has the lock writes all of the state, and so would this: a number would be lost, or a restore under way.
            # The next heartbeat brings the same settings.
            if held:
                self._known.settings = settings
                memory.save(self._places, self._known)

    def _authorize(self) -> None:
        try:
            enrolment.authorize(self._login_user, self._ssh_keys)
        except (OSError, KeyError, subprocess.CalledProcessError) as error:
            self._message = f"the keys for SSH were not put into the home of {self._login_user}: {error}"

    def _problems(self) -> list[str]:
        return [*left_out(self._known), *self._known.problems]

    def _heartbeat(self, console: Console) -> Any:
        """Say how it goes. Being unable to is no failure of what was done."""
        try:
            body = {"number": self._known.number, "unchanged": False, "status": self._status()}
            return console.post("/guest/v1/heartbeats", body, attempts=1).get("settings")
        except Fenced as error:
            self._fenced(error)
            raise
        except AgentError as error:
            self._message = str(error)
            return None

    def _status(self) -> dict[str, Any]:
        disk = os.statvfs(self._places.base)
        return {
            "phase": self._phase,
            "progress": round(self._progress, 3),
            "message": self._message,
            "logins": _logins(),
            "load": os.getloadavg()[0],
            "disk_free_bytes": disk.f_bavail * disk.f_frsize,
            "last_error": self._known.last_error,
            "problems": self._problems(),
            "version": self._version,
        }

    def _has_progress(self, message: str, part: float) -> None:
        self._message, self._progress = message, part
        # A clock that was put back must not silence the agent until it has caught up.
        if not 0 <= self._world.time() - self._told_at < 1.0:
            self._tell()
            if self._console is not None and not 0 <= self._told_at - self._beat_at < PROGRESS_S:
                self._beat_at = self._told_at
                self._heartbeat(self._console)

    def _tell(self) -> None:
        self._told_at = self._world.time()
        known = self._known
        status.write(
            self._places,
            {
                "environment": known.environment,
                "generation": known.generation,
                "phase": "fenced" if known.fenced else self._phase,
                "message": self._message,
                "progress": round(self._progress, 3),
                "restored": known.restored,
                "fenced": known.fenced,
                "number": known.number,
                "last_backup_at": known.last_backup_at,
                "last_error": known.last_error,
                "problems": self._problems(),
                "at": self._told_at,
            },
        )

    def _failed(self, phase: str, error: Exception) -> None:
        self._phase, self._message = phase, str(error)
        self._known.last_error = str(error)
        try:
            memory.save(self._places, self._known)
        except OSError as full:
            # Whoever sits here, and the console, are told all the same.
            self._message = f"{error}; and the agent's state cannot be written: {full}"
        self._tell()

    def _fenced(self, error: Fenced) -> None:
        """Never to write again. Written down first, so that a reboot does not forget it."""
        if not self._known.fenced:
            # Also where another process has the lock for longer: it hears of the fence itself, and writes the same.
            with self._alone(LOCK_WAIT_FENCED_S) as held:
                if not held:
                    self._known = memory.load(self._places)
                self._known.fenced = str(error)
                memory.save(self._places, self._known)
        self._tell()
        if self._places.base == b"/" and os.path.isdir("/run/systemd/system"):
            subprocess.run(["systemctl", "disable", "--no-reload", *UNITS], check=False)
            subprocess.run(["systemctl", "stop", "--no-block", "envctl-backup.timer"], check=False)


def _logins(folder: str = "/run/systemd/sessions") -> int:
    """How many people are signed in, by what systemd-logind knows; a user's own manager is nobody."""
    try:
        names = [name for name in os.listdir(folder) if re.fullmatch(r"c?[0-9]+", name)]
    except OSError:
        return 0
    return sum(_is_person(os.path.join(folder, name)) for name in names)


def _is_person(path: str) -> bool:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return "CLASS=user\n" in file.read().replace("CLASS=user-early\n", "CLASS=user\n")
    except OSError:
        return False
