"""`systemctl` and `journalctl` of a world without systemd: the units' own commands as processes, by pid files in a folder.

    SERVICES=FOLDER python services.py systemctl start|stop|restart|kill|status UNIT...
    SERVICES=FOLDER python services.py journalctl -u UNIT

One rule: what is started is what the unit's ExecStart says, with a notification socket as systemd gives one; `start` returns
when the service says that it is ready, and fails when it ends before.
"""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

UNITS = Path(__file__).resolve().parents[2] / "deploy/systemd"
FOLDER = Path(os.environ["SERVICES"])
PATIENCE_S = 150.0


def files(unit: str) -> tuple[Path, Path]:
    return FOLDER / f"{unit}.pid", FOLDER / f"{unit}.log"


def running(unit: str) -> int:
    pid_file, _ = files(unit)
    if not pid_file.exists():
        return 0
    pid = int(pid_file.read_text())
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return 0
    return 0 if state == "Z" else pid


def command_of(unit: str) -> list[str]:
    name, _, instance = unit.removesuffix(".service").partition("@")
    text = (UNITS / f"{name}@.service").read_text() if instance else (UNITS / f"{name}.service").read_text()
    found = re.search(r"^ExecStart=(.+)$", text, re.MULTILINE)
    assert found, f"{unit} has no ExecStart"
    return shlex.split(found[1].replace("%i", instance).replace("%I", instance))


def start(unit: str) -> int:
    if running(unit):
        return 0
    pid_file, log_file = files(unit)
    words = command_of(unit)
    program = shutil.which(Path(words[0]).name)
    assert program, f"{words[0]} is not on PATH"
    address = f"/tmp/notify-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, log_file.open("ab") as log:
        begin = log_file.stat().st_size
        notify.bind(address)
        try:
            notify.settimeout(0.2)
            child = subprocess.Popen(
                [program, *words[1:]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "NOTIFY_SOCKET": address},
                start_new_session=True,
            )
            pid_file.write_text(str(child.pid))
            give_up = time.monotonic() + PATIENCE_S
            while time.monotonic() < give_up:
                try:
                    if b"READY=1" in notify.recv(4096).splitlines():
                        return 0
                except TimeoutError:
                    pass
                if child.poll() is not None:
                    pid_file.unlink()
                    print(f"Job for {unit}.service failed.", file=sys.stderr)
                    return 1
                # s3block says it on standard output, where nobody asks to be notified.
                if re.search(rb"^serving ", log_file.read_bytes()[begin:], re.MULTILINE):
                    return 0
        finally:
            os.unlink(address)
    print(f"{unit} is not ready after {PATIENCE_S:.0f} s", file=sys.stderr)
    return 1


def stop(unit: str, number: int = signal.SIGTERM) -> int:
    pid = running(unit)
    if pid:
        if number == signal.SIGKILL:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)
        give_up = time.monotonic() + PATIENCE_S
        while running(unit):
            if time.monotonic() > give_up:
                print(f"{unit} does not end", file=sys.stderr)
                return 1
            time.sleep(0.05)
    files(unit)[0].unlink(missing_ok=True)
    return 0


def status(unit: str) -> int:
    pid, (_, log_file) = running(unit), files(unit)
    print(f"{unit}.service\n     Active: {'active (running)' if pid else 'inactive (dead)'}\n   Main PID: {pid}")
    if log_file.exists():
        print("\n".join(log_file.read_text(errors="replace").splitlines()[-10:]))
    return 0 if pid else 3


def main(program: str, words: list[str]) -> int:
    FOLDER.mkdir(exist_ok=True)
    if program == "journalctl":
        for unit in [words[n + 1] for n, word in enumerate(words[:-1]) if word == "-u"]:
            log_file = files(unit.removesuffix(".service"))[1]
            sys.stdout.write(log_file.read_text(errors="replace") if log_file.exists() else "-- No entries --\n")
        return 0
    verb, *rest = [word for word in words if not word.startswith("--")]
    if verb == "kill":
        number = signal.SIGKILL if "KILL" in rest else signal.SIGTERM
        rest = [word for word in rest if word not in ("-s", "KILL", "TERM")]
        return max(stop(unit, number) for unit in rest)
    if verb in ("daemon-reload", "reset-failed"):
        return 0
    acts = {"start": start, "enable": start, "stop": stop, "disable": stop, "status": status}
    if verb == "restart":
        return max(stop(unit) or start(unit) for unit in rest)
    return max(acts[verb](unit.removesuffix(".service")) for unit in rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
