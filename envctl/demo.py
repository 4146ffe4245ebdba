"""`s3-envctl demo`: a console with people, machines and backups, on a Proxmox VE cluster that is not there.

One rule: everything is the product's own but the cluster: the console is `envctl.serving`, the cluster is `envctl.fake_pve`
over HTTP on loopback, and in each machine that is not there the real agent saves a real folder. Homes are in a directory. What
the pages show has happened; it was asked for by verbs, like anybody's.

    DIR/config.toml    for other commands: s3-envctl doctor --config DIR/config.toml
    DIR/state          database and key          DIR/homes      what a bucket would hold
    DIR/machines       disks of the machines     DIR/cluster.json   the cluster between two demos
"""

import json
import logging
import re
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from html.parser import HTMLParser
from pathlib import Path
from types import FrameType
from typing import Any, Final
from urllib.parse import parse_qsl, urljoin, urlsplit

import httpx
from sqlalchemy import select

from envctl import serving
from envctl.accounts import passwords, people
from envctl.calling import Caller, Context
from envctl.database.models import Environment, Group, Membership, User
from envctl.fake_pve.cluster import POOL, SECRET, TOKEN, Durations, FakePve, small_cluster
from envctl.fake_pve.guest import SimulatedGuests
from envctl.fake_pve.machines import FakeMachine
from envctl.fake_pve.server import serve as serve_cluster
from envctl.fake_pve.server import write_token
from envctl.identifiers import ALPHABET, new_id, tag_of
from envctl.states import EnvironmentState
from envctl.verbs.table import verb
from envctl.web.api import call
from envctl.web.assets import missing_files
from s3core.console import write_line, write_note
from s3core.exit_codes import ExitCode, register
from s3core.settings import load_config

log = logging.getLogger(__name__)

PASSWORDS: Final = "passwords.json"
COMMANDS: Final = "alice.env"
"""What a shell reads (`. DIRECTORY/alice.env`) so that commands and requests are alice's."""
SECOND_TEMPLATE: Final = 9001
BACKUP_S: Final = 30
WORK_S: Final = 20.0
FURNISH_S: Final = 300.0
"""Longest until everything is there; nothing waits for it but `--check`."""
POLL_S: Final = 0.2
REMOVALS_MAX: Final = 25
OF_A_KIND: Final = 2
"""So many pages are looked at that differ in an id, a number or a name alone."""
PEOPLE: Final = (("alice", "user"), ("bob", "user"), ("olga", "operator"))
ENVIRONMENTS: Final[tuple[tuple[str, str, str, dict[str, Any]], ...]] = (
    ("alice", "thesis", "debian", {"schedule": {"stop": "MON-FRI 22:30", "timezone": "Europe/Berlin"}}),
    ("alice", "course", "debian", {"idle_stop_s": 7200}),
    ("alice", "old-lab", "debian", {}),
    ("bob", "analysis", "statistics", {}),
)
"""Owner, name, template, and what else is asked for."""


class DemoFailed(Exception):
    """A page did not answer, or the cluster did not do what was asked."""


register(DemoFailed, ExitCode.FINDING)


def run(*, listen: str = "127.0.0.1:8480", directory: Path | None = None, check: bool = False) -> None:
    """Until Ctrl-C or SIGTERM, or with `check` until every page was seen to answer. DemoFailed. Without `directory` nothing is
    left."""
    if gone := missing_files():
        write_note(
            f"browser code is missing ({gone[0]} and {len(gone) - 1} more), so pages are without it: run `make assets`"
        )
    logging.basicConfig(level="ERROR")
    with _ended_in_order():
        # Named before it is made: a signal that comes right after the making finds a name to remove.
        place = directory or Path(tempfile.gettempdir()) / f"s3-envctl-demo-{secrets.token_hex(8)}"
        try:
            if directory is None:
                place.mkdir(mode=0o700)
            _run(place.absolute(), _with_port(listen), keep=directory is not None, check=check)
        finally:
            _deaf()
            if directory is None:
                _remove(place)


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """SIGTERM is as Ctrl-C: the directory has the console's key in it and must not stay. Where Ctrl-C is ignored (a shell does
    that for what it runs in the background) it stays so. The console has handlers of its own while it serves."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number, handler in before.items():
        if number == signal.SIGTERM or handler != signal.SIG_IGN:
            signal.signal(number, _interrupted)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupted(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _deaf() -> None:
    """What cleans up is not cut off by a second signal. The event loop has left the defaults when it was closed."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)


def _remove(place: Path) -> None:
    """A machine whose power was cut may write its last file meanwhile."""
    for _ in range(REMOVALS_MAX):
        shutil.rmtree(place, ignore_errors=True)
        if not place.exists():
            return
        time.sleep(POLL_S)
    write_note(f"{place} could not be removed; the demo's key is in it: remove it by hand")


def _run(place: Path, listen: str, *, keep: bool, check: bool) -> None:
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    guests = SimulatedGuests(place / "machines", work_s=WORK_S, boot_s=1.0)
    quick = Durations(clone=0.2, start=0.2) if check else Durations(clone=3.0, full_clone=10.0, start=1.5, resize=0.5)
    fake = cluster(guests, quick)
    again = remembered(fake, place / "cluster.json")
    with serve_cluster(fake) as served:
        config = load_config(write_config(place, listen, served.url), environ={})
        first: list[BaseException] = []
        with serving.open_context(config) as context:
            context.database.migrate()
            words = seeded(context, place)

            def ready(url: str, stop: Callable[[], None]) -> None:
                if keep:
                    write_commands(context, url, place / COMMANDS)
                _tell(url, words, place if keep else None)
                threading.Thread(
                    target=_direct, args=(context, fake, url, words, stop, check, again, first), daemon=True
                ).start()

            try:
                serving.serve(config, environ={}, ready=ready)
            finally:
                _deaf()
                guests.close()
                if keep:
                    remember(fake, place / "cluster.json")
    if first and check:
        raise first[0]


def cluster(guests: SimulatedGuests, durations: Durations) -> FakePve:
    """Three nodes, two templates, a machine of a stranger, and one that no environment has."""
    fake = small_cluster(durations=durations, on_start=guests)
    fake.add_template(SECOND_TEMPLATE, "statistics", disk_gib=16)
    fake.access.grant(TOKEN, f"/vms/{SECOND_TEMPLATE}", ("VM.Audit", "VM.Clone"))
    lost = tag_of(new_id(time.time() - 86400.0, secrets.token_bytes(10)))
    fake.add_machine(98_000, "left-behind", pool=POOL, tags=lost, scsi0="ceph:vm-98000-disk-0,size=8G", agent="1")
    return fake


def remember(fake: FakePve, path: Path) -> None:
    """The machines, for the next demo in the same directory."""
    with fake.lock:
        told = [
            {
                "vmid": one.vmid,
                "node": one.node,
                "config": one.config,
                "pool": one.pool,
                "boots": one.boots,
                "running": one.running,
            }
            for one in fake.machines.values()
        ]
    path.write_text(json.dumps(told), encoding="utf-8")


def remembered(fake: FakePve, path: Path) -> list[FakeMachine]:
    """Put them back, as after a power cut; those that ran."""
    if not path.exists():
        return []
    ran = []
    with fake.lock:
        fake.machines.clear()
        for one in json.loads(path.read_text(encoding="utf-8")):
            machine = FakeMachine(one["vmid"], one["node"], one["config"], pool=one["pool"], boots=one["boots"])
            fake.machines[machine.vmid] = machine
            if one["running"] and machine.pool == POOL:
                ran.append(machine)
            else:
                machine.running = one["running"]
    return ran


def write_config(place: Path, listen: str, cluster_url: str) -> Path:
    token = write_token(place / "pve-token")
    path = place / "config.toml"
    path.write_text(
        f"""# Written by `s3-envctl demo`.
[envctl]
listen = "{listen}"
state_dir = "{place / "state"}"
homes = "file://{place / "homes"}"
backup_interval_s = {BACKUP_S}
log_level = "error"

[envctl.driver.pve]
kind = "pve"
url = "{cluster_url}"
token = "{token}"
pool = "{POOL}"
""",
        encoding="utf-8",
    )
    return path


def seeded(context: Context, place: Path) -> dict[str, str]:
    """People with their passwords. Templates and environments come when the console runs."""
    kept = place / PASSWORDS
    if kept.exists():
        words: dict[str, str] = json.loads(kept.read_text(encoding="utf-8"))
        return words
    words = {"admin": passwords.one_time_password()}
    people.first_admin(context, "admin", words["admin"])
    with context.audit.act(_somebody(), "demo.people") as act:
        group = Group(id=context.new_id(), name="laboratory", created_at=context.now())
        act.session.add(group)
        for name, role in PEOPLE:
            words[name] = passwords.one_time_password()
            hashed = passwords.hash_password(words[name])
            user = people.new_user(act.session, context, name, hashed, role="user", must_change=False)
            user.role = role
            act.session.add(Membership(user_id=user.id, group_id=group.id))
    kept.touch(mode=0o600)
    kept.write_text(json.dumps(words), encoding="utf-8")
    return words


def write_commands(context: Context, url: str, path: Path) -> None:
    """A token of alice's that may do all she may, for a week, with the console's address. It replaces the one of before, which
    goes on until its week is over."""
    made = _ask(context, _caller(context, "alice"), "token.create", name="demo", scopes=["*"], days=7)
    path.touch(mode=0o600)
    path.write_text(f"export ENVCTL_URL={url}\nexport ENVCTL_TOKEN={made.secret}\n", encoding="utf-8")


def _direct(
    context: Context,
    fake: FakePve,
    url: str,
    words: dict[str, str],
    stop: Callable[[], None],
    check: bool,
    again: list[FakeMachine],
    first: list[BaseException],
) -> None:
    """What people do in the demo, in a thread beside the console."""
    try:
        for machine in again:
            fake.handle(
                "POST", f"/nodes/{machine.node}/qemu/{machine.vmid}/status/start", {}, _authorization(), machine.node
            )
        furnish(context)
        if check:
            look_at_all(url, words["admin"])
    except Exception as error:  # noqa: BLE001 - it is told, and raised by the thread that serves
        first.append(error)
        write_note(f"the demo's people could not do it: {error}")
    finally:
        if check:
            stop()


def _authorization() -> str:
    return f"PVEAPIToken={TOKEN}={SECRET}"


def furnish(context: Context) -> None:
    """Templates, environments, backups; one that is stopped and one that is deleted. Nothing, where it was done before."""
    admin = _caller(context, "admin")
    there = {one.name for one in _ask(context, admin, "template.list")}
    for name, source, title, about in (
        ("debian", "9000", "Debian 13", "A plain machine with compilers, git and Python. Good for most things."),
        ("statistics", str(SECOND_TEMPLATE), "Statistics with R", "R, and the packages of the methods course."),
    ):
        if name not in there:
            _ask(
                context,
                admin,
                "template.add",
                name=name,
                title=title,
                description=about,
                driver="pve",
                source=source,
                cores_max=8,
                memory_mib_max=16384,
                disk_gib_max=100,
            )
    if there:
        return
    _ask(context, admin, "quota.set", kind="default", subject="", environments=5, running=4, cores=16)
    for owner, name, template, more in ENVIRONMENTS:
        _ask(context, _caller(context, owner), "env.create", name=name, template=template, **more)
    for owner, name, _, _ in ENVIRONMENTS:
        _wait(context, owner, name, EnvironmentState.READY, saved=True)
    alice = _caller(context, "alice")
    _ask(context, alice, "backup.pin", environment="thesis", number=1, note="before the first chapter")
    _ask(context, alice, "env.stop", environment="course")
    _ask(context, alice, "env.delete", environment="old-lab")
    _wait(context, "alice", "course", EnvironmentState.STOPPED)
    _wait(context, "alice", "old-lab", EnvironmentState.DELETED)


def look_at_all(url: str, password: str) -> list[str]:
    """Sign in as a browser does, and follow the links, to each kind of page. The paths that answered; DemoFailed names one that
    did not."""
    with httpx.Client(
        base_url=url, headers={"Origin": url}, trust_env=False, timeout=60.0, follow_redirects=True
    ) as client:
        login = _Page(client.get("/login").text)
        answer = client.post("/login", data={"name": "admin", "password": password, "csrf": login.csrf, "next": ""})
        if answer.url.path != "/environments":
            raise DemoFailed(f"nobody can sign in: {answer.status_code} at {answer.url.path}")
        wanted, seen = ["/environments"], list[str]()
        known = Counter(kind_of(path) for path in wanted)
        met = set(wanted)
        while wanted:
            path = wanted.pop(0)
            with client.stream("GET", path) as found:
                if found.status_code != 200:
                    raise DemoFailed(f"GET {path} answers {found.status_code}")
                if not found.headers.get("content-type", "").startswith("text/html"):
                    for _ in found.iter_bytes():
                        continue
                    seen.append(path)
                    continue
                found.read()
                page = _Page(found.text)
            seen.append(path)
            for link in page.links:
                split = urlsplit(urljoin(f"{url}{path}", link))
                shape = split.path + ("?" + split.query if split.query else "")
                ours = f"{split.scheme}://{split.netloc}" == url and not split.path.startswith("/static/")
                if not ours or shape in met or known[kind_of(shape)] >= OF_A_KIND:
                    continue
                met.add(shape)
                known[kind_of(shape)] += 1
                wanted.append(shape)
    write_line(f"{len(seen)} pages and files of {len(known)} kinds answered")
    return seen


def kind_of(path: str) -> str:
    """A path without what differs between pages of one kind."""
    split = urlsplit(path)
    names = sorted(name for name, _ in parse_qsl(split.query, keep_blank_values=True))
    return re.sub(rf"[{ALPHABET}]{{26}}|\d+", "*", split.path) + "?" + "&".join(names)


class _Page(HTMLParser):
    """The links of a page, and the token of its forms."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.csrf = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if tag == "a" and given.get("href"):
            self.links.append(str(given["href"]))
        if tag == "input" and given.get("name") == "csrf":
            self.csrf = given.get("value") or ""


def _wait(context: Context, owner: str, name: str, state: EnvironmentState, *, saved: bool = False) -> None:
    end = time.monotonic() + FURNISH_S
    while True:
        with context.database.read() as session:
            query = select(Environment).join(User, User.id == Environment.owner_id)
            row = session.scalars(query.where(User.name == owner, Environment.name == name)).one()
            if row.state == state and (not saved or row.last_backup_number is not None):
                return
            if row.state == EnvironmentState.FAILED:
                raise DemoFailed(f"{name} failed at {row.failed_step}: {row.failed_reason}")
            if time.monotonic() > end:
                raise DemoFailed(f"{name} is {row.state} after {FURNISH_S:.0f} s")
        time.sleep(POLL_S)


def _ask(context: Context, caller: Caller, verb_name: str, /, **fields: Any) -> Any:
    asked = verb(verb_name)
    return call(context, caller, asked, asked.request.model_validate(fields))


def _caller(context: Context, name: str) -> Caller:
    with context.database.read() as session:
        return people.caller_of(session, people.find_user(session, name), "console")


def _somebody() -> Caller:
    return Caller(user_id="", name="console", role="admin", via="console")


def _with_port(listen: str) -> str:
    """Port 0 is a free one: pages and seeds have the address in them before anything listens."""
    host, _, port = listen.rpartition(":")
    if port != "0":
        return listen
    # It is bound again later, when the demo has its people: not one of those that the kernel gives to whoever asks meanwhile.
    for _ in range(100):
        chosen = 20_000 + secrets.randbelow(12_000)
        with suppress(OSError), socket.create_server((host.strip("[]"), chosen)):
            return f"{host}:{chosen}"
    return listen


def _tell(url: str, words: dict[str, str], kept: Path | None) -> None:
    write_line(f"console   {url}")
    for name, word in words.items():
        write_line(f"{name:<9} {word}")
    if kept:
        write_line(f"commands  . {kept / COMMANDS}; s3-envctl env list")
    sys.stdout.flush()
    write_note("machines are made now; the cluster is not there, the agents and the homes are")
    write_note(f"kept in {kept}; Ctrl-C ends it" if kept else "Ctrl-C ends it and removes everything")
