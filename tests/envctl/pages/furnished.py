"""A console with something to see on each page: environments in every state, backups of two weeks, jobs, nodes, people.

    with furnished(directory) as house, house.browser("root") as client:
        client.get("/environments")

One rule: rows and objects are made by the same writers as in earnest; nothing waits and no machine exists.

`python -m tests.envctl.pages.furnished DIRECTORY` serves one on a free port of loopback, for a look or for the screenshots.
"""

import asyncio
import dataclasses
import re
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import uvicorn

from envctl.agent.tree import Row
from envctl.database.models import (
    ApiToken,
    Backup,
    Environment,
    Group,
    Guest,
    Job,
    JobLine,
    JobStep,
    Membership,
    Node,
    Orphan,
    Quota,
    Template,
    User,
)
from envctl.drivers.port import DriverFinding
from envctl.homes.documents import Stats
from envctl.states import STEPS, EnvironmentState, JobKind, JobState
from envctl.web.app import create_app
from envctl.web.events import Watchers
from tests.envctl.homes.making import Bucket, link_row, make, save
from tests.envctl.world import PASSWORD, World, make_world

EPOCH: Final = 1_700_000_000.0
"""What a FakeClock calls 0."""
NOW: Final = 1_790_000_000.0
HOUR: Final = 3600.0
DAY: Final = 86400.0
TINY_QUOTA: Final = {"environments": 6, "running": 3, "cores": 12, "memory_mib": 24576, "disk_gib": 200, "home_gib": 50}


class Quiet:
    """A hypervisor that is asked nothing but whether it is well."""

    async def check_access(self) -> list[DriverFinding]:
        return [
            DriverFinding("ok", "pve1, pve2 and pve3 answer"),
            DriverFinding(
                "warning", "the token may Sys.Audit, which is not needed", "pveum acl delete / --roles PVEAuditor"
            ),
        ]

    async def close(self) -> None:
        return None


@dataclass
class House:
    world: World
    watchers: Watchers
    url: str
    environments: Mapping[str, str]
    """Ids by name."""
    jobs: Mapping[str, str]
    users: Mapping[str, str]

    @contextmanager
    def browser(self, name: str, password: str = PASSWORD) -> Iterator[httpx.Client]:
        """A browser that is signed in."""
        with httpx.Client(base_url=self.url, follow_redirects=True, headers={"Origin": self.url}, timeout=60) as client:
            page = client.get("/login")
            answer = client.post(
                "/login", data={"name": name, "password": password, "csrf": csrf_of(page.text), "next": ""}
            )
            assert answer.url.path in ("/environments", "/profile"), answer.text
            yield client


def csrf_of(page: str) -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', page)
    assert found, "a page without a form"
    return found.group(1)


def post(client: httpx.Client, address: str, page: str, **fields: Any) -> httpx.Response:
    """Send a form as a browser does that has loaded `page`."""
    return client.post(address, data=fields | {"csrf": csrf_of(client.get(page).text)})


@contextmanager
def furnished(directory: Path) -> Iterator[House]:
    bucket = Bucket()
    world = make_world(directory, homes=bucket.store(), drivers={"pve": Quiet()}, url="")
    world.clock.now = bucket.clock.now = NOW - EPOCH
    watchers = Watchers()
    context = dataclasses.replace(world.context, told=watchers.told)
    try:
        environments, jobs = furnish(world, bucket)
        with world.database.read() as session:
            users = {user.name: user.id for user in session.query(User)}
        with served(create_app(context, watchers=watchers), watchers) as url:
            yield House(world, watchers, url, environments, jobs, users)
    finally:
        world.close()


def furnish(world: World, bucket: Bucket) -> tuple[dict[str, str], dict[str, str]]:
    debian = world.add_template(
        "debian",
        title="Debian 13",
        driver="pve",
        description="A plain machine with compilers, git and Python. Good for most things.",
        cores=2,
        memory_mib=4096,
        disk_gib=32,
        checked_at=NOW - HOUR,
        findings=[{"severity": "ok", "message": "VM 9000 is a template", "hint": ""}],
    )
    world.add_template(
        "statistics",
        title="Statistics with R",
        driver="pve",
        source="9001",
        description="R, RStudio Server, and the packages of the methods course.",
        cores=4,
        memory_mib=16384,
        memory_mib_max=65536,
        disk_gib=64,
        directories=["/home", "/srv/data"],
        checked_at=NOW - DAY,
        findings=[
            {
                "severity": "warning",
                "message": "the template has a cloud-init drive",
                "hint": "remove it: the seed comes over SMBIOS",
            }
        ],
    )
    made: dict[str, Environment] = {}

    def add(name: str, state: EnvironmentState, owner: str = "alice", **columns: Any) -> None:
        row = {
            "node": "pve1",
            "vmid": 10020 + len(made),
            "machine": f"pve1/{10020 + len(made)}",
            "generation": 1,
        } | columns
        made[name] = world.add_environment(owner, name, debian, state, **row)

    saved: dict[str, Any] = {"last_backup_at": NOW - 134, "stored_bytes": 3_456_789_012, "last_activity_at": NOW - 1800}
    add(
        "thesis",
        EnvironmentState.READY,
        address="10.20.0.14",
        ready_at=NOW - 4000,
        idle_stop_s=7200,
        generation=3,
        created_at=NOW - 20 * DAY,
        schedule={"start": "", "stop": "MON-FRI 22:30", "timezone": "Europe/Berlin"},
        **saved,
    )
    add("build-box", EnvironmentState.CLONING, running=False)
    add("course-2025", EnvironmentState.STOPPED, **saved | {"last_backup_at": NOW - 3 * DAY}, stopped_at=NOW - 3 * DAY)
    add(
        "broken",
        EnvironmentState.FAILED,
        failed_step="clone",
        failed_reason="can't lock file '/var/lock/qemu-server/lock-9000.conf' - got timeout",
        **saved | {"last_backup_at": NOW - 2 * HOUR},
    )
    add(
        "a-rather-long-name-of-an-environment",
        EnvironmentState.READY,
        address="10.20.0.19",
        frozen=True,
        last_backup_error="the store answers 503 to each PUT",
        expires_at=NOW + 9 * DAY,
        **saved | {"last_backup_at": NOW - 2.5 * HOUR},
    )
    add(
        "old-lab",
        EnvironmentState.DELETED,
        deleted_at=NOW - 2 * DAY,
        delete_after=NOW + 28 * DAY,
        machine=None,
        vmid=None,
        node=None,
        **saved | {"last_backup_at": NOW - 2 * DAY},
    )
    add("shared", EnvironmentState.READY, owner="bob", address="10.20.0.30", node="pve2", **saved)
    thesis = made["thesis"]
    last = backups_of(world, bucket, thesis.id)
    jobs = jobs_of(world, made)
    with world.database.write() as session:
        session.get_one(Environment, thesis.id).last_backup_number = last
        session.add(
            Guest(
                environment_id=thesis.id,
                generation=3,
                machine_uuid="00000000-0000-4000-8000-000000000001",
                seed_expires_at=NOW,
                public_key="00" * 32,
                enrolled_at=NOW - 4000,
                restored_at=NOW - 3990,
                seen_at=NOW - 12,
                agent_version="0.1.0",
                status={"phase": "idle", "load": 0.42, "logins": 1, "disk_free_bytes": 21_000_000_000, "message": ""},
            )
        )
        people_and_nodes(world, session, made)
    return {name: row.id for name, row in made.items()}, jobs


def backups_of(world: World, bucket: Bucket, environment_id: str) -> int:
    """Two weeks of snapshots, of which the newest has something to browse."""
    store = world.context.homes
    store.fence(environment_id, 3)
    moments = [NOW - DAY * day - HOUR * hour for day in range(13, 1, -1) for hour in (20, 14, 8)]
    moments += [NOW - HOUR * hour for hour in range(30, 1, -1)]
    moments += [NOW - 300 * step - 134 for step in range(14, -1, -1)]
    number = 0
    for index, moment in enumerate(moments):
        bucket.clock.now = moment - EPOCH
        files = {
            "home/alice/thesis/chapter-1.tex": b"\\section{Introduction}\n" + b"It was a dark night. " * 12,
            "home/alice/thesis/chapter-2.tex": f"\\section{{Method}}\n% {index // 3}\n".encode(),
            "home/alice/thesis/figures/rainfall.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            "home/alice/notes.txt": f"Notes number {index}\n".encode(),
            "home/alice/a file with blanks & <signs>.txt": b"x",
            "home/alice/.bashrc": b"alias ll='ls -l'\n",
        }
        extra: list[Row] = [link_row(b"home/alice/latest.tex", b"thesis/chapter-2.tex")]
        counted = Stats(
            12034 + index, 1_288_490_189 + index, index % 5, 1, int(index == 30), 4096 + index * 100, int(index == 50)
        )
        snapshot = save(
            store, make(files, extra=extra), environment_id=environment_id, generation=3, at=moment, stats=counted
        )
        number = snapshot.number
        with world.database.write() as session:
            session.add(
                Backup(
                    environment_id=environment_id,
                    number=number,
                    at=moment,
                    generation=3,
                    kind="asked" if index == 20 else "timer",
                    files=counted.files,
                    bytes=counted.bytes,
                    added=counted.added,
                    changed=counted.changed,
                    removed=counted.removed,
                    new_bytes=counted.new_bytes,
                    fuzzy=counted.fuzzy,
                    pinned=index in (10, 40),
                    note="before the defence" if index == 10 else "",
                    alert="41 % of 12,034 files were rewritten at once" if index == 41 else None,
                )
            )
    bucket.clock.now = NOW - EPOCH
    return number


def jobs_of(world: World, made: Mapping[str, Environment]) -> dict[str, str]:
    found: dict[str, str] = {}
    with world.database.write() as session:

        def job(name: str, kind: JobKind, state: JobState, step: str, age: float, **columns: Any) -> Job:
            row = Job(
                id=world.context.new_id(),
                environment_id=made[name].id,
                kind=kind,
                state=state,
                step=step,
                steps=[str(one) for one in STEPS[kind]],
                created_by=columns.pop("by", "alice"),
                created_at=NOW - age,
                started_at=NOW - age + 1,
                **columns,
            )
            session.add(row)
            session.flush()
            found[name] = row.id
            return row

        job("thesis", JobKind.CREATE, JobState.SUCCEEDED, "restore", 4100, ended_at=NOW - 4000)
        busy = job("build-box", JobKind.CREATE, JobState.RUNNING, "clone", 20)
        job(
            "broken",
            JobKind.RESET,
            JobState.FAILED,
            "clone",
            900,
            attempt=2,
            ended_at=NOW - 700,
            error="can't lock file '/var/lock/qemu-server/lock-9000.conf' - got timeout",
        )
        job(
            "course-2025",
            JobKind.STOP,
            JobState.SUCCEEDED,
            "shutdown",
            3 * DAY,
            ended_at=NOW - 3 * DAY + 40,
            by="schedule",
        )
        for index, (name, state) in enumerate((("reserve", "done"), ("fence", "done"), ("clone", "running"))):
            session.add(
                JobStep(
                    id=world.context.new_id(),
                    job_id=busy.id,
                    name=name,
                    attempt=1,
                    state=state,
                    task="UPID:pve1:0012AB34:0F00BA11:6ABCDEF0:qmclone:9000:envctl@pve!console:"
                    if name == "clone"
                    else None,
                    started_at=NOW - 19 + index,
                    ended_at=None if state == "running" else NOW - 18 + index,
                )
            )
        texts = {
            "thesis": (
                "Create: asked for by alice.",
                "The number 10020 is ours.",
                "The home is fenced: generation 3.",
                "Cloning 9000 to 10020 on pve1.",
                "Cloned in 14 s.",
                "!The node is slow; trying again in 4 s.",
                "Started.",
                "The agent has enrolled from 10.20.0.14.",
                "Restored 12,034 files, 1.2 GiB in 19 s.",
                "Ready.",
            ),
            "build-box": ("Create: asked for by alice.", "The number 10021 is ours.", "Cloning 9000 to 10021 on pve1."),
            "broken": (
                "Reset: asked for by alice.",
                "#can't lock file '/var/lock/qemu-server/lock-9000.conf' - got timeout",
            ),
        }
        for name, lines in texts.items():
            for index, text in enumerate(lines):
                level = {"!": "warning", "#": "error"}.get(text[0], "info")
                session.add(
                    JobLine(
                        environment_id=made[name].id,
                        job_id=found[name],
                        at=NOW - 100 + index * 3,
                        level=level,
                        text=text.lstrip("!#"),
                    )
                )
    return found


def people_and_nodes(world: World, session: Any, made: Mapping[str, Environment]) -> None:
    new_id = world.context.new_id
    alice = session.query(User).filter_by(name="alice").one()
    alice.display_name, alice.email = "Alice Liddell", "alice@example.org"
    alice.ssh_keys = ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBSj1lBNHHnN8XQo8WmJ5xkq1c1m6i4bF5xJ6u7cJg2T alice@laptop"]
    group = Group(id=new_id(), name="students", oidc_value="cn=students", created_at=NOW - 90 * DAY)
    session.add(group)
    session.flush()
    session.add(Membership(user_id=alice.id, group_id=group.id))
    session.add(Quota(id=new_id(), subject_kind="default", subject_id="", **TINY_QUOTA))
    session.add(Quota(id=new_id(), subject_kind="group", subject_id=group.id, environments=8, running=3))
    session.add(
        ApiToken(
            id=new_id(),
            user_id=alice.id,
            name="laptop",
            token_hash="0" * 64,
            scopes=["backup:read", "env:write"],
            created_at=NOW - 9 * DAY,
            expires_at=NOW + 81 * DAY,
            last_used_at=NOW - 600,
            last_used_from="192.0.2.44",
        )
    )
    for name, used in (("pve1", 0.62), ("pve2", 0.93)):
        session.add(
            Node(
                name=name,
                driver="pve",
                online=True,
                cores=32,
                memory_bytes=256 << 30,
                memory_used_bytes=int((256 << 30) * used),
                storages=[
                    {"name": "local-zfs", "total_bytes": 2_000_000_000_000, "used_bytes": int(2e12 * used)},
                    {"name": "ceph", "total_bytes": 40_000_000_000_000, "used_bytes": 31_000_000_000_000},
                ],
                at=NOW - 30,
            )
        )
    session.add(
        Node(
            name="pve3",
            driver="pve",
            online=False,
            cores=16,
            memory_bytes=0,
            memory_used_bytes=0,
            storages=[],
            at=NOW - 7200,
        )
    )
    session.add(
        Orphan(
            machine="pve2/10077",
            driver="pve",
            name="thesis",
            tag=f"env-{made['thesis'].id}",
            first_seen_at=NOW - 5 * HOUR,
            seen_at=NOW - 40,
        )
    )
    session.add(
        Orphan(
            machine="pve1/10099",
            driver="pve",
            name="left-over",
            tag="env-01k0000000000000000000zzzz",
            first_seen_at=NOW - 9 * DAY,
            seen_at=NOW - 40,
            kept=True,
        )
    )
    session.query(Template).filter_by(name="statistics").one().groups = [group.id]


@contextmanager
def served(app: Any, watchers: Watchers) -> Iterator[str]:
    """The application on a free port of loopback, in a thread; the address."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="warning", proxy_headers=False, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        watchers.close()
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server did not end"
        listening.close()


def main() -> None:
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp(prefix="envctl-furnished-"))
    with furnished(directory) as house:
        print(f"{house.url} (root, ops, alice, bob; password: {PASSWORD})", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
