"""How soon the console answers: pages and API with 200 environments, while the agents of all of them wait for commands.

One rule: it is the console itself in a process of its own, over HTTP on loopback, with rights, sign-in and audit as ever.
The agents are played by one process more, with keys and signatures as they have them; what they cost is in the figure.
"""

import asyncio
import base64
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Final

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy.orm import Session

from bench.processes import BenchFailed, end, start, wait_for_line
from bench.report import TableOf
from envctl import serving
from envctl.accounts import logins, people, tokens
from envctl.calling import Context
from envctl.database.models import AuditRow, Backup, Environment, Guest, Job, JobLine, Template, User
from envctl.states import STEPS, EnvironmentState, JobKind, JobState
from s3core.settings import load_config

AIM_MS: Final = 100.0
ENVIRONMENTS: Final = 200
USERS: Final = 10
LINES: Final = 40
BACKUPS: Final = 60
WAIT_S: Final = 25
SETTLE_S: Final = 3.0
READY: Final = "serving at "


@dataclass(frozen=True, slots=True)
class ConsolePlan:
    """`requests`: of each page, after as many tenths to warm up."""

    requests: int


FULL: Final = ConsolePlan(200)
QUICK: Final = ConsolePlan(50)


@dataclass(frozen=True, slots=True)
class Answered:
    """Milliseconds of one page or request, whole answers."""

    name: str
    requests: int
    p50_ms: float
    p95_ms: float
    worst_ms: float
    kilobytes: float


class ConsoleBench:
    def __init__(self, directory: Path, say: Callable[[str], None]) -> None:
        self._directory = directory / "console"
        self._say = say

    def run(self, plan: ConsolePlan) -> list[Answered]:
        """BenchFailed where something does not answer as it should."""
        self._directory.mkdir()
        config_path = self._directory / "config.toml"
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        config_path.write_text(
            f'[envctl]\nlisten = "127.0.0.1:{port}"\nstate_dir = "{self._directory / "state"}"\n'
            f'homes = "file://{self._directory / "homes"}"\n',
            encoding="utf-8",
        )
        self._say(f"console: {ENVIRONMENTS} environments of {USERS} users")
        with serving.open_context(load_config(config_path)) as context:
            context.database.migrate()
            keys = self._directory / "keys"
            keys.mkdir()
            names = furnish(context, keys)
            cookies = {name: cookie(context, name) for name in ("admin", "user0")}
            token = api_token(context, "admin")
        log = self._directory / "console.log"
        server = start(
            [sys.executable, "-c", "from envctl.cli import main; main()", "serve", "--config", str(config_path)], log
        )
        agents = None
        try:
            wait_for_line(log, READY, server)
            url = f"http://127.0.0.1:{port}"
            agents = start([sys.executable, "-m", "bench.console", url, str(keys)], self._directory / "agents.log")
            wait_for_line(self._directory / "agents.log", "waiting", agents)
            time.sleep(SETTLE_S)
            found = []
            for name, path, who in pages(names[0]):
                headers = (
                    {"Authorization": f"Bearer {token}"}
                    if who == "token"
                    else {"Cookie": f"envctl={cookies[who]}"}
                    if who
                    else {}
                )
                found.append(measure(name, url, path, headers, plan.requests))
                self._say(f"console: {name}: p95 {found[-1].p95_ms:.0f} ms")
            if agents.poll() is not None:
                raise BenchFailed(
                    f"the agents ended:\n{(self._directory / 'agents.log').read_text(errors='replace')[-2000:]}"
                )
            return found
        finally:
            if agents is not None:
                end(agents)
            end(server)


def pages(environment: str) -> list[tuple[str, str, str]]:
    """Name, path and who asks: a browser of a user, or a token."""
    return [
        ("sign-in page", "/login", ""),
        ("my environments (20)", "/environments", "user0"),
        ("all environments (200)", "/admin/environments", "admin"),
        ("environment", f"/environments/{environment}", "user0"),
        ("new environment", "/environments/new", "user0"),
        ("jobs", "/admin/jobs", "admin"),
        ("backup health", "/admin/backups", "admin"),
        ("audit", "/admin/audit", "admin"),
        ("API: all environments", "/api/v1/environments?everybody=true", "token"),
        ("API: one environment", f"/api/v1/environments/{environment}", "token"),
        ("API: its jobs", "/api/v1/jobs", "token"),
        ("metrics", "/metrics", ""),
    ]


def measure(name: str, url: str, path: str, headers: dict[str, str], requests: int) -> Answered:
    """One client, one request after the other, on a connection that stays open."""
    took, size = [], 0
    with httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=60.0) as client:
        for turn in range(requests + max(1, requests // 10)):
            begin = time.perf_counter()
            answer = client.get(path)
            seconds = time.perf_counter() - begin
            if answer.status_code != 200:
                raise BenchFailed(f"GET {path} answers {answer.status_code}: {answer.text[:300]}")
            if turn >= max(1, requests // 10):
                took.append(seconds * 1000)
                size = len(answer.content)
    took.sort()
    p95 = took[min(len(took) - 1, int(0.95 * len(took)))]
    return Answered(name, requests, median(took), p95, took[-1], size / 1024)


def furnish(context: Context, keys: Path) -> list[str]:
    """Users, environments, jobs with their logs, backups, audit; the agents' keys go to `keys`. Ids of the environments, the
    first user's first."""
    now = context.now()
    made: list[str] = []
    with context.database.write() as session:
        template = Template(
            id=context.new_id(),
            name="debian",
            title="Debian 13",
            driver="pve",
            source="9000",
            cores=2,
            cores_max=8,
            memory_mib=2048,
            memory_mib_max=16384,
            disk_gib=20,
            disk_gib_max=100,
            directories=["/home"],
            created_at=now,
        )
        people.new_user(session, context, "admin", None, role="admin", must_change=False)
        owners = [
            people.new_user(session, context, f"user{number}", None, role="user", must_change=False)
            for number in range(USERS)
        ]
        session.add(template)
        session.flush()
        for number in range(ENVIRONMENTS):
            made.append(environment(context, session, owners[number * USERS // ENVIRONMENTS], template, number, keys))
            session.flush()
    return made


def environment(
    context: Context,
    session: Session,
    owner: User,
    template: Template,
    number: int,
    keys: Path,
) -> str:
    now = context.now()
    name = context.new_id()
    job = context.new_id()
    key = Ed25519PrivateKey.generate()
    (keys / name).write_bytes(key.private_bytes_raw())
    session.add_all(
        [
            Environment(
                id=name,
                owner_id=owner.id,
                name=f"machine-{number}",
                template_id=template.id,
                state=EnvironmentState.READY,
                driver="pve",
                node=f"pve{number % 3 + 1}",
                vmid=90_000 + number,
                machine=f"pve{number % 3 + 1}/{90_000 + number}",
                address=f"198.51.100.{number % 250 + 1}",
                running=True,
                cores=2,
                memory_mib=2048,
                disk_gib=20,
                directories=["/home"],
                generation=1,
                created_at=now - 86400,
                ready_at=now - 80000,
                last_backup_at=now - 60,
                last_backup_number=BACKUPS,
                stored_bytes=number << 26,
            )
        ]
    )
    session.flush()
    session.add_all(
        [
            Job(
                id=job,
                environment_id=name,
                kind=JobKind.CREATE,
                state=JobState.SUCCEEDED,
                steps=[str(step) for step in STEPS[JobKind.CREATE]],
                created_by=owner.name,
                created_at=now - 86400,
                started_at=now - 86399,
                ended_at=now - 86340,
            ),
            Guest(
                environment_id=name,
                generation=1,
                machine_uuid="00000000-0000-4000-8000-000000000000",
                seed_expires_at=now - 80000,
                public_key=key.public_key().public_bytes_raw().hex(),
                enrolled_at=now - 80000,
                restored_at=now - 80000,
                seen_at=now,
                agent_version="1",
            ),
            *(
                JobLine(environment_id=name, job_id=job, at=now - 86400 + line, text=f"Step {line} is done.")
                for line in range(LINES)
            ),
            *(
                Backup(
                    environment_id=name,
                    number=one,
                    at=now - 300 * (BACKUPS - one),
                    generation=1,
                    kind="timer",
                    files=10_000,
                    bytes=1 << 30,
                    added=3,
                    changed=5,
                    removed=1,
                    new_bytes=1 << 20,
                    fuzzy=0,
                )
                for one in range(1, BACKUPS + 1)
            ),
            *(
                AuditRow(
                    at=now - 86400, actor=owner.name, via="browser", verb="env.open", environment_id=name, outcome="ok"
                )
                for _ in range(5)
            ),
        ]
    )
    return name


def cookie(context: Context, name: str) -> str:
    with context.database.write() as session:
        user = people.find_user(session, name)
        return logins.create(session, context, user, "full", address="127.0.0.1").cookie


def api_token(context: Context, name: str) -> str:
    with context.database.write() as session:
        return tokens.create(session, context, people.find_user(session, name), "bench", ["*"], None).text


def tables(found: list[Answered]) -> list[TableOf]:
    header = ["page or request", "p50 ms", "p95 ms", "worst ms", "KiB", "aim"]
    rows = [
        [
            one.name,
            f"{one.p50_ms:.1f}",
            f"{one.p95_ms:.1f}",
            f"{one.worst_ms:.1f}",
            f"{one.kilobytes:.0f}",
            f"p95 < {AIM_MS:.0f}",
        ]
        for one in found
    ]
    return [(f"Console: {ENVIRONMENTS} environments, whose agents all wait for commands", header, rows)]


def lines(found: list[Answered]) -> list[str]:
    worst = max(found, key=lambda one: one.p95_ms)
    verdict = "met" if worst.p95_ms < AIM_MS else "missed"
    return [
        f"console: the slowest p95 is {worst.p95_ms:.0f} ms ({worst.name}); the aim of {AIM_MS:.0f} ms is {verdict}"
    ]


def document(found: list[Answered]) -> list[dict[str, object]]:
    return [asdict(one) for one in found]


# --- the agents' process


async def _wait_for_commands(url: str, keys: Path) -> None:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with (
        httpx.AsyncClient(base_url=url, trust_env=False, timeout=WAIT_S + 30, limits=limits) as client,
        asyncio.TaskGroup() as tasks,
    ):
        for number, path in enumerate(sorted(keys.iterdir())):
            key = Ed25519PrivateKey.from_private_bytes(path.read_bytes())
            tasks.create_task(_one_agent(client, path.name, key, number * WAIT_S / ENVIRONMENTS / 10))
        sys.stdout.write("waiting\n")
        sys.stdout.flush()


async def _one_agent(client: httpx.AsyncClient, environment: str, key: Ed25519PrivateKey, after_s: float) -> None:
    await asyncio.sleep(after_s)
    target = f"/guest/v1/commands?wait={WAIT_S}"
    while True:
        date, nonce = str(int(time.time() * 1000)), os.urandom(16).hex()
        message = f"envctl-v1\nGET\n{target}\n{date}\n{nonce}\n{sha256(b'').hexdigest()}".encode()
        headers = {
            "Envctl-Guest": f"{environment}.1",
            "Envctl-Date": date,
            "Envctl-Nonce": nonce,
            "Envctl-Signature": base64.b64encode(key.sign(message)).decode(),
        }
        answer = await client.get(target, headers=headers)
        if answer.status_code != 200:
            raise BenchFailed(f"an agent was answered {answer.status_code}: {answer.text}")


if __name__ == "__main__":
    asyncio.run(_wait_for_commands(sys.argv[1], Path(sys.argv[2])))
