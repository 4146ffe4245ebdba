"""The `bucketworks` command: what stores there are, and what they are good for."""

from typing import Annotated, NoReturn

import typer

from s3core import config_commands, endpoint_commands, status_commands
from s3core.console import JsonOption, new_program, run_and_exit
from s3core.endpoint_commands import ConfigOption
from s3core.findings import Finding, write_finding
from s3core.settings import load_config

app = new_program("bucketworks", "Object stores, and what they are good for.")
app.add_typer(endpoint_commands.app)
app.add_typer(config_commands.app)
app.command("status")(status_commands.status)
app.command("spending")(status_commands.spending)


@app.command("doctor")
def doctor(
    url: Annotated[str, typer.Argument(help="s3://ENDPOINT/BUCKET/PREFIX or file:///DIRECTORY", show_default=False)],
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a store what it really honours, and say which tools may run on it.

    Writes a few small objects below the URL and removes them again."""
    from s3core.doctor import diagnose, write_diagnosis

    config = load_config(config_path)
    try:
        diagnosis = diagnose(url, config, on_finding=_ignore if as_json else write_finding)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    write_diagnosis(diagnosis, as_json=as_json)
    raise typer.Exit(diagnosis.exit_code)


def _ignore(finding: Finding) -> None:
    """With --json everything is told at the end."""


def main() -> NoReturn:
    run_and_exit(app, "bucketworks")
