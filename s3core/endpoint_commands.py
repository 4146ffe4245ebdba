"""`bucketworks endpoint create|list|test|delete`: the servers this host knows.

One rule: a secret is read from a prompt, a file or the environment, never from the command line, and is never printed.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn
from urllib.parse import urlsplit

import typer

from s3core.clock import SystemClock
from s3core.config_file import change_file, with_table, without_table
from s3core.console import Column, JsonOption, new_app, write_json, write_line, write_note, write_records
from s3core.credentials import environment_names, read_secret
from s3core.endpoint import PRESETS
from s3core.settings import Config, ConfigError, EndpointSettings, load_config, settings_to_endpoint
from s3core.settings_table import reason

app = new_app("endpoint", "The S3 servers in the configuration file.")

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="Configuration file [BUCKETWORKS_CONFIG, else /etc/bucketworks/config.toml].",
        show_default=False,
    ),
]
NameArgument = Annotated[str, typer.Argument(help="The endpoint's name, as in s3://NAME/BUCKET.", show_default=False)]


def _option(setting: str, flag: str) -> Any:
    return typer.Option(flag, help=reason("endpoint.NAME", setting), show_default=False)


def usage(message: str) -> NoReturn:
    """End with a usage error."""
    raise typer.BadParameter(message)


@app.command()
def create(
    name: NameArgument,
    preset: Annotated[str, _option("preset", "--preset")] = "generic",
    url: Annotated[str, _option("url", "--url")] = "",
    region: Annotated[str, _option("region", "--region")] = "",
    addressing: Annotated[str, _option("addressing", "--addressing")] = "",
    credentials: Annotated[str, _option("credentials", "--credentials")] = "",
    access_key: Annotated[
        str,
        typer.Option(
            "--access-key",
            help="Keep this key in the configuration file; its secret is asked for, or read as --secret-file says, or"
            " from BUCKETWORKS_NAME_SECRET_KEY.",
        ),
    ] = "",
    secret_file: Annotated[
        Path | None,
        typer.Option("--secret-file", help="File of mode 0600 whose first line is the secret; - is standard input."),
    ] = None,
    ca_file: Annotated[str, _option("ca_file", "--ca-file")] = "",
    fingerprint: Annotated[str, _option("fingerprint", "--fingerprint")] = "",
    proxy: Annotated[str, _option("proxy", "--proxy")] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace an endpoint of that name.")] = False,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write an endpoint to the configuration file. Nothing is contacted; `endpoint test` does that."""
    path = writable(config_path)
    given = {
        "preset": preset,
        "url": url,
        "region": region,
        "addressing": addressing,
        "credentials": credentials,
        "ca_file": ca_file,
        "fingerprint": fingerprint,
        "proxy": proxy,
    }
    values = {setting: value for setting, value in given.items() if value}
    if preset not in PRESETS:
        usage(f"--preset must be one of {', '.join(PRESETS)}, not {preset!r}")
    if access_key and credentials:
        usage("--access-key and --credentials are two sources of keys; give one")
    if secret_file is not None and not access_key:
        usage("--secret-file needs --access-key")
    before = load_config(path) if path.exists() else Config(path=path)
    if name in before.endpoints and not force:
        raise ConfigError(
            f"{path}: [endpoint.{name}] is there already", hint="choose another name, or replace it with --force"
        )
    if access_key:
        values |= {"access_key": access_key, "secret_key": _secret(name, secret_file)}

    def change(text: str) -> str:
        return with_table(text, "endpoint", name, values)

    change_file(path, change)
    if as_json:
        write_json(_shown(name, load_config(path).endpoints[name], path))
        return
    write_line(f"endpoint {name} written to {path}")
    write_note(f"next: bucketworks endpoint test {name}\n      bucketworks doctor s3://{name}/BUCKET")


@app.command("list")
def list_endpoints(config_path: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show the endpoints of the configuration file. No secret is read."""
    config = load_config(config_path)
    records = [_shown(name, settings, config.path) for name, settings in sorted(config.endpoints.items())]
    columns = [Column(key, key.upper()) for key in ("name", "preset", "url", "region", "addressing", "credentials")]
    if not records and not as_json:
        write_note(f"no endpoints in {config.path}; add one: bucketworks endpoint create NAME --url https://...")
        return
    write_records(records, columns, as_json=as_json)


@app.command("test")
def try_endpoint(
    name: NameArgument,
    bucket: Annotated[str, typer.Argument(help="A bucket to look into; else the buckets are listed.")] = "",
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Contact an endpoint: connection, certificate, clock, keys. Writes nothing."""
    from s3core.findings import exit_code_for, write_finding
    from s3core.s3_facts import examine_endpoint

    if "/" in bucket or ":" in bucket:
        usage(f"{bucket!r} is no bucket's name; what a place in a bucket is good for says: bucketworks doctor {bucket}")
    config = load_config(config_path)
    findings = examine_endpoint(config.endpoint(name), bucket, "", SystemClock())
    if as_json:
        write_json({"endpoint": name, "findings": [finding.as_record() for finding in findings]})
    else:
        for finding in findings:
            write_finding(finding)
    raise typer.Exit(exit_code_for(findings))


@app.command()
def delete(
    name: NameArgument,
    force: Annotated[bool, typer.Option("--force", help="Also when volumes or mirrors of this file use it.")] = False,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove an endpoint from the configuration file. Nothing at the server is touched."""
    config = load_config(config_path)
    if name not in config.endpoints:
        config.endpoint(name, {})  # raises, with the nearest name
    users = [volume for volume, settings in config.volumes.items() if urlsplit(settings.url).netloc == name]
    if users and not force:
        raise ConfigError(
            f"{config.path}: [volume.{users[0]}] lives in endpoint {name}",
            hint="remove the volume first, or use --force",
        )
    mirrors = [
        mirror
        for mirror, settings in config.mirrors.items()
        if name in (urlsplit(url).netloc for url in (settings.source, settings.target, settings.state))
    ]
    if mirrors and not force:
        raise ConfigError(
            f"{config.path}: [mirror.{mirrors[0]}] uses endpoint {name}",
            hint="remove the mirror first, or use --force",
        )
    change_file(config.path, lambda text: without_table(text, "endpoint", name))
    if as_json:
        write_json({"deleted": name, "path": str(config.path)})
    else:
        write_line(f"endpoint {name} removed from {config.path}")


def writable(config_path: Path | None) -> Path:
    """The file to write: unlike a reader's, it may be absent even where it was named."""
    return config_path if config_path is not None else load_config().path


def _secret(name: str, secret_file: Path | None) -> str:
    variable = environment_names(name)["secret_key"]
    if secret_file is not None and str(secret_file) == "-":
        secret = sys.stdin.readline().strip()
    elif secret_file is not None:
        secret = read_secret(secret_file)
    elif os.environ.get(variable):
        secret = os.environ[variable]
    elif sys.stdin.isatty():
        secret = typer.prompt("secret key", hide_input=True, err=True)
    else:
        usage(f"no secret: standard input is no terminal to ask at; use --secret-file or set {variable}")
    if not secret:
        usage("the secret is empty")
    return secret


def _shown(name: str, settings: EndpointSettings, path: Path) -> dict[str, object]:
    endpoint = settings_to_endpoint(name, settings, path=path)
    return {
        "name": name,
        "preset": endpoint.preset,
        "url": endpoint.url,
        "region": endpoint.region,
        "addressing": endpoint.addressing,
        "credentials": "this file" if settings.access_key else settings.credentials,
        "ca_file": endpoint.ca_file,
        "fingerprint": endpoint.fingerprint,
        "proxy": endpoint.proxy,
    }
