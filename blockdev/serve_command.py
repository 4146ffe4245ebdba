"""`s3block serve`: from the configuration and the command line to the daemon.

One rule: a setting given on the command line is checked like one in the file, and counts for every volume served.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from blockdev.arguments import KeyOption, StateDirOption, duration_option, find, option, secret_from, size_option, usage
from s3core.endpoint_commands import ConfigOption
from s3core.settings import Config, S3BlockSettings, VolumeSettings, load_config
from s3core.settings_table import reason


def serve(
    names: Annotated[list[str], typer.Argument(metavar="VOLUME", help="Volumes, by name or URL.", show_default=False)],
    door: Annotated[str | None, option("door", "--door", metavar="portal|lio")] = None,
    listen: Annotated[list[str] | None, option("listen", "--listen", metavar="HOST:PORT")] = None,
    advertise: Annotated[list[str] | None, option("advertise", "--advertise", metavar="HOST:PORT")] = None,
    state_dir: StateDirOption = None,
    journal_size: Annotated[int | None, size_option("journal_bytes", "--journal-size")] = None,
    cache_size: Annotated[int | None, size_option("cache_bytes", "--cache-size")] = None,
    commit_bytes: Annotated[int | None, size_option("commit_bytes", "--commit-bytes")] = None,
    commit_interval: Annotated[float | None, duration_option("commit_interval_s", "--commit-interval")] = None,
    commits_per_hour: Annotated[int | None, option("commits_per_hour_max", "--commits-per-hour")] = None,
    flush: Annotated[str | None, option("flush", "--flush", metavar="local|s3")] = None,
    chap_user: Annotated[str | None, option("chap_user", "--chap-user")] = None,
    chap_secret_file: Annotated[str | None, option("chap_secret_file", "--chap-secret-file")] = None,
    chap_mutual_user: Annotated[str | None, option("chap_mutual_user", "--chap-mutual-user")] = None,
    chap_mutual_secret_file: Annotated[
        str | None, option("chap_mutual_secret_file", "--chap-mutual-secret-file")
    ] = None,
    key: KeyOption = None,
    accept_loss: Annotated[
        bool,
        typer.Option(
            "--accept-loss",
            help="Attach although the journal with the last acknowledged writes is gone; they are lost then.",
        ),
    ] = False,
    lease: Annotated[float | None, duration_option("lease_s", "--lease")] = None,
    host_is_off: Annotated[
        bool,
        typer.Option(
            "--host-is-off",
            help="The host that had the volume is switched off: do not wait for its lease. If it is not, writes get lost.",
        ),
    ] = False,
    quota: Annotated[int | None, size_option("quota_bytes", "--quota")] = None,
    quota_warning: Annotated[float | None, option("quota_warning", "--quota-warning")] = None,
    read_only: Annotated[bool, option("read_only", "--read-only")] = False,
    unfenced: Annotated[bool, option("unfenced", "--unfenced")] = False,
    metrics_listen: Annotated[
        str | None,
        typer.Option(
            "--metrics-listen", metavar="HOST:PORT", help=reason("s3block", "metrics_listen"), show_default=False
        ),
    ] = None,
    config_path: ConfigOption = None,
) -> None:
    """Serve volumes over iSCSI until SIGTERM or Ctrl-C; then leave them clean in the bucket."""
    config = _with_metrics(load_config(config_path), metrics_listen)
    given = {
        "door": door,
        "listen": tuple(listen) if listen else None,
        # What the file advertises goes with what it listens on.
        "advertise": tuple(advertise) if advertise else () if listen else None,
        "journal_bytes": journal_size,
        "cache_bytes": cache_size,
        "commit_bytes": commit_bytes,
        "commit_interval_s": commit_interval,
        "commits_per_hour_max": commits_per_hour,
        "flush": flush,
        "lease_s": lease,
        "chap_user": chap_user,
        "chap_secret_file": chap_secret_file,
        "chap_mutual_user": chap_mutual_user,
        "chap_mutual_secret_file": chap_mutual_secret_file,
        "key": key,
        "quota_bytes": quota,
        "quota_warning": quota_warning,
        "read_only": read_only or None,
        "unfenced": unfenced or None,
        "metrics_listen": metrics_listen,
    }
    overrides = {setting: value for setting, value in given.items() if value is not None}
    places = [find(config, name) for name in names]
    served: dict[str, VolumeSettings] = {}
    for place in places:
        if place.name in served:
            usage(f"two volumes called {place.name}: serve them by two processes with different --state-dir")
        own = overrides | ({"state_dir": str(state_dir / place.name)} if state_dir is not None else {})
        served[place.name] = _overridden(place.settings, own)

    from blockdev import daemon

    daemon.serve(
        config,
        [
            daemon.ServedVolume(
                place.name,
                place.store_url,
                settings,
                Path(settings.state_dir).absolute(),
                secret_from(settings.key, place.name),
            )
            for place, settings in zip(places, served.values(), strict=True)
        ],
        accept_loss=accept_loss,
        host_is_off=host_is_off,
    )


def _with_metrics(config: Config, listen: str | None) -> Config:
    """`config` with the command line's address for metrics. BadParameter."""
    if listen is None:
        return config
    try:
        common = S3BlockSettings.model_validate(config.s3block.model_dump() | {"metrics_listen": listen})
    except ValidationError as error:
        message = str(error.errors(include_url=False, include_input=False)[0]["msg"]).removeprefix("Value error, ")
        raise typer.BadParameter(f"--metrics-listen: {message}") from error
    return config.model_copy(update={"s3block": common})


def _overridden(settings: VolumeSettings, overrides: Mapping[str, object]) -> VolumeSettings:
    """`settings` with the command line's values, checked like the file's. BadParameter."""
    try:
        checked = VolumeSettings.model_validate(settings.model_dump() | dict(overrides))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        setting = str(first["loc"][0])
        message = str(first["msg"]).removeprefix("Value error, ")
        raise typer.BadParameter(f"{_flag(setting)}: {message}") from error
    for user, secret in (("chap_user", "chap_secret_file"), ("chap_mutual_user", "chap_mutual_secret_file")):
        if bool(getattr(checked, user)) != bool(getattr(checked, secret)):
            usage(f"{_flag(user)} and {_flag(secret)} belong together; one is missing")
    if checked.chap_mutual_user and not checked.chap_user:
        usage("--chap-mutual-user needs --chap-user (RFC 7143 section 12.1.3)")
    return checked


def _flag(setting: str) -> str:
    flags = {
        "journal_bytes": "journal-size",
        "cache_bytes": "cache-size",
        "commit_interval_s": "commit-interval",
        "lease_s": "lease",
        "commits_per_hour_max": "commits-per-hour",
        "quota_bytes": "quota",
    }
    return "--" + flags.get(setting, setting.replace("_", "-"))
