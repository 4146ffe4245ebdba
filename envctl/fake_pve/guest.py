"""What runs in a machine of the fake: a home on this host's disk, and the real agent over it.

    guests = SimulatedGuests(directory)
    fake = small_cluster(on_start=guests)

One rule: the agent is the one that real guests run (`envctl.agent`), as processes over a folder instead of `/`. Only what a
machine itself would be is played here: the disk, SMBIOS, cloud-init, the timer, the power button, and somebody who works in the
home. So what the console shows of a simulated machine (enrolment, restore, backups, restores of files) has really happened, and
cutting the power is killing processes.

Nothing of this host is touched: the seed's login user and SSH keys are left aside, as are hooks and units.

| the machine's power is cut in | what is so | who repairs it |
| --- | --- | --- |
| the boot, before enrolment | the key is on the disk | the next boot enrols with the same key |
| a restore, a backup | what the agent says of itself | the agent at the next boot |
"""

import json
import logging
import os
import random
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import envctl
from envctl.agent import ed25519, memory, status
from envctl.agent.client import Console, World
from envctl.agent.errors import AgentError
from envctl.agent.main import VERSION
from envctl.agent.places import Places, read_json, replace
from envctl.agent.service import Service
from envctl.fake_pve.machines import Running
from envctl.seed import SERIAL_PREFIX

log = logging.getLogger(__name__)

POLL_S: Final = 0.5
RETRY_S: Final = 2.0
SEED_BYTES_MAX: Final = 1 << 20
_AGENT: Final = """\
import os, sys, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
from envctl.agent.main import main
sys.exit(main())
"""
"""It ends with the process that plays the machine, however that ends: then nobody holds the other end of its standard input."""


class PowerIsOff(Exception):
    """Raised wherever a guest's thread asks for the time or sleeps after its machine went off: it does nothing more."""


class SimulatedGuests:
    """Makes what runs in each machine that is started; to be given as `on_start`.

    `directory` is where disks are. `work_s`: how often somebody changes something in a home; 0: nobody does. `fill`: writes the
    first content of an empty home, given the home's folder and the machine's name.
    """

    def __init__(
        self,
        directory: Path,
        *,
        work_s: float = 0.0,
        boot_s: float = 0.0,
        fill: "Callable[[Path, str], None] | None" = None,
    ) -> None:
        self._directory = directory
        self._work_s = work_s
        self._boot_s = boot_s
        self._fill = fill or fill_home
        self._lock = threading.Lock()
        self._guests: list[SimulatedGuest] = []

    def __call__(self, running: Running) -> "SimulatedGuest":
        disk = self._directory / str(running.vmid)
        if running.fresh and disk.exists():
            shutil.rmtree(disk)
        guest = SimulatedGuest(running, disk, work_s=self._work_s, boot_s=self._boot_s, fill=self._fill)
        with self._lock:
            self._guests = [each for each in self._guests if each.is_on] + [guest]
        guest.start()
        return guest

    def guest(self, vmid: int) -> "SimulatedGuest":
        """The one that runs in a machine now; KeyError."""
        with self._lock:
            for each in self._guests:
                if each.running.vmid == vmid and each.is_on:
                    return each
        raise KeyError(vmid)

    def close(self) -> None:
        """Cut the power of all."""
        with self._lock:
            for each in self._guests:
                each.cut_power()


class SimulatedGuest:
    """One boot of one machine."""

    def __init__(
        self, running: Running, disk: Path, *, work_s: float, boot_s: float, fill: Callable[[Path, str], None]
    ) -> None:
        self.running = running
        self._disk = disk
        self.root = disk / "root"
        """What is `/` to the agent: `root / "home"` is where homes are."""
        self._work_s = work_s
        self._boot_s = boot_s
        self._fill = fill
        self._off = threading.Event()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._processes: list[subprocess.Popen[bytes]] = []
        """Of the agent; under `_lock`, so that none begins after the power was cut."""
        self._world = World(self._time, self._sleep, os.urandom)
        self._places = Places(
            etc=str(disk / "etc"),
            state=str(disk / "state"),
            run=str(disk / f"run-{running.boot}"),
            base=os.fsencode(self.root) + b"/",
        )
        self._said = "booting"

    @property
    def is_on(self) -> bool:
        return not self._off.is_set()

    @property
    def address(self) -> str:
        """Of the range for documentation (RFC 5737): nobody can connect to it."""
        return f"198.51.100.{self.running.vmid % 250 + 1}" if self.is_on else ""

    def lines(self) -> list[str]:
        facts = status.read(self._places) if self.is_on else None
        shown = [f"address {self.address}", self._said]
        if facts is not None:
            shown += [line[:48] for line in status.words(facts).splitlines()[:3]]
        return shown

    def start(self) -> None:
        self._thread("boot", self._boot)

    def press_power_button(self) -> None:
        """The final backup, then off. A second press while it shuts down does nothing."""
        if not self._stopping.is_set():
            self._stopping.set()
            self._thread("shutdown", self._shut_down)

    def cut_power(self) -> None:
        self._off.set()
        with self._lock:
            for process in self._processes:
                process.kill()

    # Threads

    def _thread(self, what: str, target: Callable[[], None]) -> None:
        def whole() -> None:
            try:
                target()
            except PowerIsOff:
                return
            except (AgentError, OSError, ValueError) as error:
                # As in a machine: it stands there, and its screen says why.
                self._said = f"{what} failed: {error}"
                log.warning("simulated machine %d: %s failed: %s", self.running.vmid, what, error)

        threading.Thread(target=whole, name=f"guest-{self.running.vmid}-{what}", daemon=True).start()

    def _time(self) -> float:
        if self._off.is_set():
            raise PowerIsOff
        return time.time()

    def _sleep(self, seconds: float) -> None:
        if self._off.wait(seconds):
            raise PowerIsOff

    def _boot(self) -> None:
        self._sleep(self._boot_s)
        for path in (self._places.etc, self._places.state, self._places.run, self.root / "home"):
            os.makedirs(path, exist_ok=True)
        self._places.make()
        while not self._enrolled():
            self._sleep(RETRY_S)
        self._said = "restoring the home"
        if self._agent("restore") != 0:
            self._said = "the home did not come; nobody is let in"
            return
        self._said = "ready"
        home = self._home()
        if not home.exists():
            self._fill(home, self.running.name)
        self._thread("timer", self._timer)
        if self._work_s > 0:
            self._thread("work", self._work)
        self._agent("run")
        self._said = "another machine has this home now"

    def _timer(self) -> None:
        """The systemd timer; the agent itself says whether the interval is over."""
        service = Service(self._places, self._world, version=VERSION)
        while not self._stopping.is_set() and not memory.load(self._places).fenced:
            self._sleep(POLL_S)
            if service.is_due():
                self._agent("backup")

    def _shut_down(self) -> None:
        self._said = "shutting down: saving the home"
        if memory.load(self._places).restored:
            self._agent("final")
        self.cut_power()
        self.running.power_off()

    def _agent(self, verb: str) -> int:
        """Run the agent to its end; its exit status. PowerIsOff."""
        folders = ["--etc", self._places.etc, "--state", self._places.state, "--run", self._places.run]
        command = [sys.executable, "-c", _AGENT, *folders, "--base", str(self.root), verb]
        path = os.pathsep.join([str(Path(envctl.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        with open(self._disk / "agent.log", "ab") as said:
            with self._lock:
                self._time()
                process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=said, stderr=said, env={**os.environ, "PYTHONPATH": path}
                )
                self._processes.append(process)
            ended = process.wait()
        assert process.stdin is not None
        process.stdin.close()
        with self._lock:
            self._processes.remove(process)
        self._time()
        return ended

    def _work(self) -> None:
        """Somebody who writes now and then."""
        drawn = random.Random(self.running.uuid)
        turn = 0
        while not self._stopping.is_set():
            self._sleep(self._work_s)
            turn += 1
            work_in(self._home(), drawn, turn, self._time())

    def _home(self) -> Path:
        seed = read_json(self._places.seed) or {}
        return self.root / "home" / str(seed.get("user_of_home") or "user")

    # Enrolment: what cloud-init and the firmware do in a real machine

    def _enrolled(self) -> bool:
        """Whether this machine has its identity. The key is on the disk before the console hears of it."""
        held = read_json(self._places.identity)
        if held is not None and held.get("environment"):
            return True
        seed = self._fetched()
        if seed is None:
            self._said = "no seed: the console gives none at the address in SMBIOS"
            return False
        if held is None or held.get("token") != seed["token"]:
            held = {"token": seed["token"], "key": os.urandom(ed25519.SEED_BYTES).hex(), "seed": seed}
            replace(self._places.identity, json.dumps(held).encode())
        replace(self._places.seed, json.dumps(seed).encode())
        public = ed25519.public_key(bytes.fromhex(held["key"]))
        try:
            answer = Console(seed["console"], self._world, ca_pem=str(seed.get("ca_pem") or "")).post(
                "/guest/v1/enrol",
                {
                    "token": seed["token"],
                    "uuid": self.running.uuid,
                    "public_key": public.hex(),
                    "agent_version": f"{VERSION} (simulated)",
                },
                attempts=1,
            )
        except AgentError as error:
            self._said = f"enrolment: {error}"
            return False
        held["environment"], held["generation"] = answer["environment"], answer["generation"]
        replace(self._places.identity, json.dumps(held).encode())
        return True

    def _fetched(self) -> dict[str, Any] | None:
        serial = self.running.serial
        if not serial.startswith(SERIAL_PREFIX):
            return None
        address = serial[len(SERIAL_PREFIX) :].rstrip("/") + "/agent.json"
        self._time()
        try:
            with urllib.request.urlopen(address, timeout=30) as response:
                seed = json.loads(response.read(SEED_BYTES_MAX))
        except (urllib.error.URLError, OSError, ValueError) as error:
            log.info("simulated machine %d: seed: %s", self.running.vmid, error)
            return None
        if not isinstance(seed, dict) or "console" not in seed or "token" not in seed:
            return None
        # The agent would make this user on this host, and put keys into that home: here it must not.
        return {**seed, "user_of_home": seed.get("login_user") or "user", "login_user": "", "ssh_keys": []}


def fill_home(home: Path, name: str) -> None:
    """A small home as people have it: text, a program, pictures, links. The same for the same name."""
    drawn = random.Random(name)
    texts = {
        ".bashrc": "alias ll='ls -l'\nexport EDITOR=vim\n",
        ".profile": "umask 022\n",
        ".config/git/config": f"[user]\n\tname = {name}\n\temail = {name}@example.org\n",
        "Documents/notes.md": f"# Notes of {name}\n\n- read the measurement of Monday\n- write to the group\n",
        "Documents/thesis/chapter-1.tex": "\\chapter{Introduction}\n" + _prose(drawn, 400),
        "Documents/thesis/chapter-2.tex": "\\chapter{Method}\n" + _prose(drawn, 900),
        "Documents/Grüße.txt": "Viele Grüße aus dem Labor.\n",
        "src/analysis/main.py": "import sys\n\n\ndef main() -> int:\n    print('hello')\n    return 0\n\n\nsys.exit(main())\n",
        "src/analysis/README.md": "# Analysis\n\nRun `python main.py`.\n",
        "data/measurement.csv": "second,value\n" + "".join(f"{n},{drawn.random():.6f}\n" for n in range(4000)),
    }
    for path, text in texts.items():
        _write(home / path, text.encode())
    for number in range(1, 5):
        _write(home / f"Pictures/photo-{number}.jpg", b"\xff\xd8\xff\xe0" + drawn.randbytes(120_000) + b"\xff\xd9")
    os.chmod(home / "src/analysis/main.py", 0o755)
    (home / "latest").symlink_to("Documents/thesis")
    (home / "Downloads").mkdir(exist_ok=True)


def work_in(home: Path, drawn: random.Random, turn: int, now: float) -> None:
    """One change, as somebody who works makes it: mostly a line, at times a new file, seldom a file less."""
    if not home.is_dir():
        return
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(now))
    with open(home / "work.log", "a", encoding="utf-8") as file:
        file.write(f"{stamp} step {turn}: {_prose(drawn, 8)}")
    if turn % 3 == 0:
        _write(home / f"data/run-{turn:04}.csv", "".join(f"{n},{drawn.random():.6f}\n" for n in range(300)).encode())
    if turn % 10 == 0:
        (home / f"data/run-{turn - 7:04}.csv").unlink(missing_ok=True)


_WORDS: Final = (
    "sample",
    "was",
    "heated",
    "slowly",
    "and",
    "the",
    "signal",
    "of",
    "each",
    "sensor",
    "written",
    "down",
    "again",
)


def _prose(drawn: random.Random, count: int) -> str:
    return " ".join(drawn.choice(_WORDS) for _ in range(count)) + ".\n"


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
