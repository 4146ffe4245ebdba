"""`bucketworks config check|show|migrate`: the configuration file examined, printed and brought to the newest version.

One rule: no secret is printed, whatever is asked for.
"""

import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel, SecretStr

from s3core.clock import SystemClock
from s3core.config_check import examine, examine_online, examine_version, exit_code_of_findings
from s3core.config_file import replace_file, written
from s3core.config_migration import Migrated, migrated
from s3core.config_versions import HISTORY, KEY, version_of
from s3core.console import JsonOption, new_app, write_json, write_line, write_note
from s3core.endpoint_commands import ConfigOption
from s3core.exit_codes import ExitCode
from s3core.findings import CHECK_WIDTH, Finding, write_finding
from s3core.settings import Config, ConfigError, config_path_of, load_config, parse_tables

app = new_app("config", "The configuration file: check it, show it, bring it to the newest version.")

HIDDEN = "(hidden)"
SECRETS = frozenset({"secret_key", "session_token"})
_PASSWORD = re.compile(r"(://[^/\s:]*:)\S*@")
"""Up to the last '@': what reads addresses of databases takes a password with '/' or '@' in it, too."""
_PARAMETER = re.compile(r"([?&][^=&\s]*(?:password|secret|token)[^=&\s]*=)[^&\s]+", re.IGNORECASE)

FileArgument = Annotated[
    Path | None, typer.Argument(metavar="[FILE]", help="The file; else as --config says.", show_default=False)
]


@app.command()
def check(
    file: FileArgument = None,
    online: Annotated[bool, typer.Option("--online", help="Ask every endpoint and bucket that it names, too.")] = False,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is wrong with the configuration file. Nothing is written, and without --online nothing is contacted.

    Ends with 0 when all is well, 1 with warnings, 3 with faults (6 or 5 where an endpoint does not answer or refuses)."""
    path = config_path_of(file or config_path)
    if not path.exists() and file is None and config_path is None:
        findings, config = [Finding("file", "note", f"{path} is not there, which is an empty configuration")], None
    else:
        findings, config = _read(path)
    if config is not None:
        findings += examine(config)
        if online:
            findings += examine_online(config, _asking(config))
    if as_json:
        write_json({"path": str(path), "findings": [one.as_record() for one in findings]})
    else:
        for one in findings:
            write_finding(one, max(CHECK_WIDTH, *(len(one.check) for one in findings)))
        verdicts = [one.verdict for one in findings]
        write_line(
            f"{path}: {_counted(verdicts.count('fault'), 'fault')}, {_counted(verdicts.count('warning'), 'warning')}"
        )
        if config is None and "fault" in verdicts:
            write_note("the file could not be read whole: mend this, and check again for the rest")
    raise typer.Exit(exit_code_of_findings(findings))


@app.command()
def show(
    file: FileArgument = None,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="With every default, as the tools use it, not only what the file says.")
    ] = False,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the configuration as the tools read it. Secrets are never printed."""
    path = config_path_of(file or config_path)
    config = load_config(path if path.exists() else None)
    tables = resolved_tables(config) if resolved else hidden(_said(path))
    if as_json:
        write_json({KEY: HISTORY.current, **tables})
    else:
        write_line(as_toml({KEY: HISTORY.current, **tables}))


@app.command()
def migrate(
    file: FileArgument = None,
    to: Annotated[
        int | None,
        typer.Option("--to", min=1, help="Another version than the newest, before going back to an older program."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")] = False,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring the configuration file to the newest version. Comments and order stay; the file as it was is kept beside it.

    It is replaced whole or not at all. Running it again does nothing."""
    path = config_path_of(file or config_path)
    outcome, backup = migrate_file(path, to, dry_run=dry_run)
    if as_json:
        record = {"path": str(path), "before": outcome.before, "after": outcome.after, "changes": list(outcome.done)}
        write_json(record | {"backup": str(backup) if backup else ""})
        return
    for line in outcome.done:
        write_line(line)
    if outcome.before == outcome.after:
        write_line(f"{path}: is of version {outcome.after}; nothing to do")
    elif dry_run:
        write_line(f"{path}: would go from version {outcome.before} to {outcome.after}")
    else:
        write_line(f"{path}: from version {outcome.before} to {outcome.after}")
        write_note(f"the file as it was: {backup}")


def migrate_file(path: Path, to: int | None = None, *, dry_run: bool = False) -> tuple[Migrated, Path | None]:
    """What was done, and where the file as it was is kept. ConfigError; then the file is as it was. A crash leaves the old
    file or the new one, and a backup that may be whole already."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    outcome = migrated(text, to, path=path)
    if dry_run or outcome.text == text:
        return outcome, None
    backup = path.resolve().with_name(f"{path.resolve().name}.version-{outcome.before}")
    done: list[Migrated] = []

    def change(before: str) -> str:
        made = migrated(before, to, path=path)
        _keep(backup, before, path.resolve().stat())
        done.append(made)
        return made.text

    replace_file(path, change)
    return done[0], backup


def resolved_tables(config: Config) -> dict[str, Any]:
    """Everything as the tools use it, secrets hidden."""
    told: dict[str, Any] = {
        "endpoint": {name: _plain(one) for name, one in config.endpoints.items()},
        "volume": {name: _plain(config.volume(name)) for name in config.volumes},
        "mirror": {name: _plain(config.mirror(name)) for name in config.mirrors},
        "ledger": {name: _plain(config.ledger(name)) for name in config.ledgers},
        "s3block": _plain(config.s3block),
        "pve": _plain(config.pve),
        "envctl": _plain(config.envctl),
        "status": _plain(config.status),
    }
    return {table: values for table, values in hidden(told).items() if values}


def hidden(value: Any, name: str = "") -> Any:
    """`value` without secrets: those of SECRETS, and passwords in addresses."""
    if isinstance(value, Mapping):
        return {key: hidden(one, key) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [hidden(one, name) for one in value]
    if name in SECRETS and value:
        return HIDDEN
    if isinstance(value, str):
        return _PARAMETER.sub(rf"\g<1>{HIDDEN}", _PASSWORD.sub(rf"\g<1>{HIDDEN}@", value))
    return value


def as_toml(tables: Mapping[str, Any], within: tuple[str, ...] = ()) -> str:
    """Settings first, then the tables below them."""
    lines = [f"{_named(key)} = {written(value)}" for key, value in tables.items() if not isinstance(value, Mapping)]
    for key, value in tables.items():
        if isinstance(value, Mapping):
            place = (*within, key)
            inner = as_toml(value, place)
            plain = any(not isinstance(one, Mapping) for one in value.values())
            lines += ["", f"[{'.'.join(map(_named, place))}]", inner.lstrip("\n")] if plain or not value else [inner]
    return "\n".join(lines).rstrip("\n")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _named(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        fields = {name: _plain(getattr(value, name)) for name in type(value).model_fields}
        return {name: one for name, one in fields.items() if one is not None}
    if isinstance(value, SecretStr):
        return HIDDEN
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, tuple | list) else value


def _said(path: Path) -> dict[str, Any]:
    return parse_tables(path.read_text(encoding="utf-8"), path=path) if path.exists() else {}


def _read(path: Path) -> tuple[list[Finding], Config | None]:
    """Faults of reading, one for each line that the error has; the configuration where there is none."""
    try:
        config = load_config(path)
        version = version_of(tomllib.loads(path.read_text(encoding="utf-8")))
    except ConfigError as error:
        lines = [line.removeprefix(f"{path}: ") for line in error.args[0].splitlines()]
        return [_fault(line, error.hint) for line in lines], None
    return examine_version(version), config


def _fault(line: str, hint: str) -> Finding:
    table = re.match(r"\[([^\]]+)\]: ", line)
    said = line[table.end() :] if table else line
    return Finding(table[1] if table else "file", "fault", said, hint, ExitCode.CONFIGURATION)


def _asking(config: Config) -> Any:
    from s3core.s3_facts import examine_endpoint

    def ask(name: str, bucket: str) -> Iterable[Finding]:
        found = examine_endpoint(config.endpoint(name), bucket, "", SystemClock())
        where = f"s3://{name}/{bucket}".rstrip("/")
        return [Finding(where, one.verdict, f"{one.check}: {one.said}", one.cure, one.code) for one in found]

    return ask


def _keep(backup: Path, text: str, owner: os.stat_result) -> None:
    """The file as it was, mode 0600, synced before the file is replaced. One of the same version that is there is older."""
    handle = os.open(backup, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(handle, "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o600)
        if os.geteuid() == 0:
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
