"""`admin doctor`: what is wrong with the installation, and what to do.

One rule: it looks with the eyes of the console itself: the same database, the same store and its keys, the same tokens. Nothing
but a probe object in the homes' store is written, and that goes again.
"""

import asyncio
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from pydantic import Field
from sqlalchemy import func, select

from envctl.accounts.people import role_of
from envctl.accounts.rights import require
from envctl.calling import Caller, Context
from envctl.database.models import Template, User
from envctl.drivers.port import DriverFinding, EnvDriver
from envctl.errors import EnvctlError
from envctl.verbs.verb import Answer, Request, Verb
from s3core.errors import NotFound, PreconditionFailed, StoreError
from s3core.quantities import shown_duration

Severity = Literal["ok", "warning", "error"]
DRIVER_S: Final = 60.0
STORE_SLOW_S: Final = 1.0


class AskDoctor(Request):
    part: Literal["all", "console", "database", "store", "drivers", "templates", "accounts"] = Field(
        default="all", description="look at this alone"
    )


class Finding(Answer):
    part: str
    """`database`, `store`, `driver pve`, ..."""
    severity: Severity
    message: str
    hint: str = ""


class Diagnosis(Answer):
    healthy: bool
    """No error among the findings; warnings do not count."""
    findings: list[Finding]


def doctor(context: Context, caller: Caller, request: AskDoctor) -> Diagnosis:
    """All findings, the bad ones first."""
    require(caller, "admin:read", "admin")
    looks: dict[str, Callable[[Context], Iterator[Finding]]] = {
        "console": console,
        "database": database,
        "store": store,
        "drivers": drivers,
        "templates": templates,
        "accounts": accounts,
    }
    found: list[Finding] = []
    for name, look in looks.items():
        # Without a database there is nothing to look at, and one finding says so.
        if any(one.part == "database" and one.severity == "error" for one in found) and name in (
            "templates",
            "accounts",
        ):
            continue
        if request.part in ("all", name):
            found += _guarded(name, look, context)
    rank = {"error": 0, "warning": 1, "ok": 2}
    found.sort(key=lambda one: rank[one.severity])
    return Diagnosis(healthy=not any(one.severity == "error" for one in found), findings=found)


def console(context: Context) -> Iterator[Finding]:
    """Addresses, TLS, files of the console itself."""
    settings = context.settings
    url = settings.url or f"http://{settings.listen}"
    split = urlsplit(url)
    here = split.hostname in ("127.0.0.1", "::1", "localhost")
    if split.scheme != "https" and not here:
        yield Finding(
            part="console",
            severity="error",
            message=f"browsers find the console at {url}: passwords and cookies cross the network in the clear",
            hint="set certificate and private_key in [envctl], or put a proxy with TLS in front, and url to https://",
        )
    elif here:
        yield Finding(
            part="console",
            severity="warning",
            message=f"the console's address is {url}: nobody but this host reaches it",
            hint="set url in [envctl] to the address that browsers and guests use",
        )
    else:
        yield Finding(part="console", severity="ok", message=f"browsers find the console at {url}")
    if not settings.proxies and not settings.certificate and split.scheme == "https":
        yield Finding(
            part="console",
            severity="warning",
            message="a proxy serves https, and `proxies` is empty: every user has the proxy's address",
            hint="set proxies in [envctl] to the proxy's address, so that limits and audit have the browser's",
        )
    key = Path(settings.state_dir) / "key"
    if key.exists() and stat.S_IMODE(key.stat().st_mode) & 0o077:
        yield Finding(part="console", severity="error", message=f"others may read {key}", hint=f"chmod 600 {key}")
    if context.audit.lost:
        yield Finding(
            part="console",
            severity="warning",
            message=f"the ledger misses {context.audit.lost} outcomes since the console started",
            hint="s3integrity status says why; the audit of the console has them",
        )


def database(context: Context) -> Iterator[Finding]:
    file = Path(context.settings.state_dir) / "envctl.sqlite3"
    if context.database.kind == "sqlite" and not context.settings.database and not file.exists():
        yield Finding(
            part="database", severity="error", message=f"there is no database yet at {file}", hint="run: s3-envctl init"
        )
        return
    context.database.check()
    yield Finding(part="database", severity="ok", message=f"{context.database.kind} has the schema of this program")
    for line in context.database.damage():
        yield Finding(
            part="database",
            severity="error",
            message=f"the file is damaged: {line}",
            hint="stop the console and put the newest backup in its place (docs/envctl/operations.md)",
        )


def store(context: Context) -> Iterator[Finding]:
    """Conditional writes are what keeps two machines apart: they are tried."""
    objects = context.homes.objects
    key = f"doctor/{context.new_id()}"
    began = context.clock.monotonic()
    etag = objects.put_if_absent(key, b"one")
    try:
        try:
            objects.put_if_absent(key, b"two")
        except PreconditionFailed:
            yield Finding(part="store", severity="ok", message="nothing that is there is written again (If-None-Match)")
        else:
            yield _no_conditions("If-None-Match: *")
        second = objects.put_if_match(key, b"three", etag)
        try:
            objects.put_if_match(key, b"four", etag)
        except (PreconditionFailed, NotFound):
            yield Finding(part="store", severity="ok", message="a head is replaced only by who read it (If-Match)")
        else:
            yield _no_conditions("If-Match")
        del second
    finally:
        objects.delete(key)
    took = context.clock.monotonic() - began
    slow = took / 5 > STORE_SLOW_S
    yield Finding(
        part="store",
        severity="warning" if slow else "ok",
        message=f"{context.settings.homes}: five requests in {shown_duration(took)}",
        hint="backups wait for each commit; look at the store and the network between" if slow else "",
    )


def drivers(context: Context) -> Iterator[Finding]:
    if not context.drivers:
        yield Finding(
            part="drivers",
            severity="error",
            message="there is nothing that makes machines",
            hint="add a table [envctl.driver.NAME] to the configuration (docs/envctl.md)",
        )
    for name, found in asyncio.run(_all_access(dict(context.drivers))).items():
        for one in found:
            yield Finding(part=f"driver {name}", severity=one.severity, message=one.message, hint=one.hint)


def templates(context: Context) -> Iterator[Finding]:
    """What their last checks said; `template check` looks anew."""
    with context.database.read() as session:
        rows = list(session.scalars(select(Template).where(Template.enabled).order_by(Template.name)))
    if not rows:
        yield Finding(
            part="templates",
            severity="warning",
            message="there is no template, so nobody can make an environment",
            hint="s3-envctl template add --help; docs/envctl/templates.md",
        )
    for row in rows:
        part = f"template {row.name}"
        if row.driver not in context.drivers:
            yield Finding(
                part=part, severity="error", message=f"its driver {row.driver} is not configured", hint="add the driver"
            )
        elif row.checked_at is None:
            yield Finding(
                part=part,
                severity="warning",
                message="it was never checked",
                hint=f"s3-envctl template check {row.name}",
            )
        else:
            bad = [one for one in row.findings if one.get("severity") == "error"]
            for one in bad:
                yield Finding(part=part, severity="error", message=one["message"], hint=one.get("hint", ""))
            if not bad:
                yield Finding(part=part, severity="ok", message="its last check found no error")


def accounts(context: Context) -> Iterator[Finding]:
    with context.database.read() as session:
        users = list(session.scalars(select(User).where(User.enabled)))
        admins = [user for user in users if role_of(session, user) == "admin"]
        count = session.scalar(select(func.count()).select_from(User)) or 0
    weak = sorted(user.name for user in admins if user.password_hash is not None and not user.totp_confirmed)
    if not admins:
        yield Finding(
            part="accounts", severity="error", message="there is no admin", hint="on this host: s3-envctl init"
        )
    if weak:
        yield Finding(
            part="accounts",
            severity="warning",
            message=f"admins without a second factor: {', '.join(weak)}",
            hint='their profile page sets it up; require_totp = "admins" makes it a must',
        )
    yield Finding(part="accounts", severity="ok", message=f"{count} users, {len(admins)} of them admins")


async def _all_access(drivers: dict[str, EnvDriver]) -> dict[str, list[DriverFinding]]:
    found = await asyncio.gather(*(_access(driver) for driver in drivers.values()))
    return dict(zip(drivers, found, strict=True))


async def _access(driver: EnvDriver) -> list[DriverFinding]:
    try:
        async with asyncio.timeout(DRIVER_S):
            return list(await driver.check_access())
    except TimeoutError:
        return [DriverFinding("error", f"no answer within {DRIVER_S:.0f} s", "is the hypervisor up?")]
    except EnvctlError as error:
        return [DriverFinding("error", str(error.args[0]), error.hint)]
    finally:
        # Connections belong to this event loop, which ends with the question.
        await driver.close()


def _guarded(name: str, look: Callable[[Context], Iterator[Finding]], context: Context) -> Iterator[Finding]:
    """What breaks a look is its finding; the others go on."""
    try:
        yield from look(context)
    except (EnvctlError, StoreError, OSError) as error:
        hint = str(getattr(error, "hint", ""))
        message = str(error).removesuffix(f" ({hint})") if hint else str(error)
        yield Finding(part=name, severity="error", message=message or type(error).__name__, hint=hint)


def _no_conditions(what: str) -> Finding:
    return Finding(
        part="store",
        severity="error",
        message=f"the store does not honour {what}: two machines could overwrite each other's backups",
        hint="use a store that has conditional writes; bucketworks endpoint doctor tries them all",
    )


VERBS: Final = (
    Verb(
        name="admin.doctor",
        method="GET",
        path="/admin/doctor",
        scope="admin:read",
        function=doctor,
        request=AskDoctor,
        answer=Diagnosis,
        summary="Look for what is wrong with the installation",
        role="admin",
    ),
)
