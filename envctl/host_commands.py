"""Commands on the console's own host: they read its configuration, and need no console that answers.

One rule: what is imported by one command alone is imported there, so that `s3-envctl env list` does not wait for a web server.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer

from envctl.accounts import people
from envctl.calling import Caller, Context
from envctl.database.access import Database, sqlite_url
from envctl.verbs.doctor import AskDoctor, Diagnosis, Finding
from envctl.verbs.doctor import doctor as diagnose
from s3core.console import JsonOption, new_app, write_json, write_line, write_note
from s3core.endpoint_commands import ConfigOption
from s3core.exit_codes import ExitCode
from s3core.findings import CHECK_WIDTH
from s3core.logs import configure_logging
from s3core.settings import load_config

CONSOLE: Final = Caller(user_id="", name="console", role="admin", via="console")
"""Whoever may read the configuration on this host."""

database = new_app("database", "The console's database.")


def serve(
    role: Annotated[
        str, typer.Option("--role", help="`all`; or `web` and `worker`, several of each, on one PostgreSQL.")
    ] = "all",
    config_path: ConfigOption = None,
) -> None:
    """Serve the console until it is told to stop: pages, API, guests, jobs, schedule."""
    from envctl import serving

    if role not in ("all", "web", "worker"):
        raise typer.BadParameter(f"{role!r} is not a role; there are all, web and worker", param_hint="--role")
    config = load_config(config_path)
    configure_logging(config.envctl.log_level, config.envctl.log_format)
    serving.serve(config, "web" if role == "web" else "worker" if role == "worker" else "all")


def init(
    name: Annotated[str, typer.Argument(help="Of the first admin.")] = "admin",
    recover: Annotated[
        bool,
        typer.Option("--recover", help="NAME exists: make it an admin with a new password and no second factor."),
    ] = False,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the database and the first admin. The password is printed once, and is changed at the first sign-in."""
    with _console(config_path) as context:
        context.database.migrate()
        made = people.recover_admin(context, name) if recover else people.first_admin(context, name)
        settings = context.settings
        url = settings.url or f"http://{settings.listen}"
    if as_json:
        write_json({"url": url, "name": made.name, "password": made.one_time_password})
        return
    write_line(f"console   {url}")
    write_line(f"name      {made.name}")
    write_line(f"password  {made.one_time_password}")
    write_note("it is shown this once; the console asks for another at the first sign-in")


def migrate(config_path: ConfigOption = None) -> None:
    """Bring the database to this version. All or nothing; `serve` does it too. Save the database before: `database backup`."""
    with _console(config_path) as context:
        context.database.migrate()
        context.database.check()
    write_note("the database has the schema of this version")


def doctor(
    part: Annotated[
        str, typer.Option("--part", help="Look at this alone: console, database, store, drivers, templates, accounts.")
    ] = "all",
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look for what is wrong with the installation, from this host: addresses, database, store, hypervisors, templates,
    accounts. Ends with 1 where there is an error."""
    asked = AskDoctor.model_validate({"part": part})
    with _console(config_path) as context:
        found = diagnose(context, CONSOLE, asked)
    if part in ("all", "console") and (lacks := _browser_code()):
        found = Diagnosis(healthy=False, findings=[lacks, *found.findings])
    _show(found, as_json=as_json)
    if not found.healthy:
        raise typer.Exit(ExitCode.FINDING)


def demo(
    listen: Annotated[str, typer.Option("--listen", help="Where the console listens.")] = "127.0.0.1:8480",
    directory: Annotated[
        Path | None, typer.Option("--dir", help="Keep everything here, for the next time. Else it goes at the end.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Sign in, look at every page, and end.")] = False,
) -> None:
    """A console to click through, on a cluster that is not there: users, templates, environments, backups. Ctrl-C ends it."""
    from envctl import demo as demonstration

    demonstration.run(listen=listen, directory=directory, check=check)


def agent_file(
    path: Annotated[Path, typer.Argument(help="Where the file is written.")] = Path("envctl-agent.pyz"),
) -> None:
    """Write the agent, one file for Python 3.9 and later, for templates that have it inside (docs/envctl/agent.md)."""
    from envctl.homes.agent_file import agent_file as built
    from envctl.homes.agent_file import agent_sha256

    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(built())
        part.chmod(0o755)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    write_line(f"{agent_sha256()}  {path}")


@database.command("backup")
def database_backup(
    path: Annotated[Path, typer.Argument(help="Where the copy is written; a file there is replaced.")],
    config_path: ConfigOption = None,
) -> None:
    """Copy the database as of one moment, while the console runs. Keep the key file with it, or sealed secrets are lost."""
    with _database_alone(config_path) as (opened, state_dir):
        opened.backup(path)
    write_note(f"wrote {path}; the key that opens its secrets is {state_dir / 'key'}")


@database.command("check")
def database_check(config_path: ConfigOption = None) -> None:
    """Whether it has the schema of this version, and whether its file is whole. Ends with 1 where it is not."""
    with _database_alone(config_path) as (opened, _):
        opened.check()
        damage = opened.damage()
    for line in damage:
        write_line(line)
    if damage:
        raise typer.Exit(ExitCode.FINDING)
    write_note("the database is whole")


@contextmanager
def _console(config_path: Path | None) -> Iterator[Context]:
    from envctl.serving import open_context

    with open_context(load_config(config_path)) as context:
        yield context


@contextmanager
def _database_alone(config_path: Path | None) -> Iterator[tuple[Database, Path]]:
    """It and the state directory, without keys of endpoints, ledgers and hypervisors: they may be credentials of the unit,
    which nobody else has, and a copy is made when all else is in doubt."""
    settings = load_config(config_path).envctl
    opened = Database(settings.database or sqlite_url(settings.state_dir))
    try:
        yield opened, Path(settings.state_dir)
    finally:
        opened.close()


def _browser_code() -> Finding | None:
    from envctl.web.assets import missing_files

    gone = missing_files()
    if not gone:
        return None
    return Finding(
        part="console",
        severity="error",
        message=f"browser code is missing ({', '.join(gone)}): pages do not refresh, screens and terminals stay empty",
        hint="run `make assets` in the source tree, then install from it again",
    )


def _show(found: Diagnosis, *, as_json: bool) -> None:
    if as_json:
        write_json(found.model_dump())
        return
    for one in found.findings:
        write_line(f"{one.severity:<9}  {one.part:<{CHECK_WIDTH}}  {one.message}")
        if one.hint:
            write_line(f"{'':<9}  {'':<{CHECK_WIDTH}}  -> {one.hint}")
