"""`pve-s3 lifecycle` and `pve-s3 thaw`: what the bucket does with age, and bringing back what it has put away.

One rule: rules that are not ours are shown and never touched.
"""

from contextlib import closing
from typing import Annotated

import typer

from plugin.arguments import (
    CredentialsOption,
    RootOption,
    StorageArgument,
    VolumeArgument,
    begin_logging,
    named_storage,
)
from plugin.bucket import open_bucket
from plugin.configuration import Storage
from plugin.lifecycle import apply_rules, remove_rules, rule_prefix, rules_for, thaw
from plugin.session import volume_named
from s3core.console import Column, JsonOption, write_line, write_record, write_records
from s3core.endpoint_commands import ConfigOption
from s3core.s3_control import LifecycleRule, S3Control
from s3core.settings import load_config
from s3core.write_options import RestoreTier

DAYS = 7
"""For which a thawed copy stays, where nobody says otherwise."""


def lifecycle(
    id: StorageArgument,
    apply: Annotated[bool, typer.Option("--apply", help="Bring our rules to what the storage says.")] = False,
    remove: Annotated[
        bool, typer.Option("--remove", help="Take our rules away, before the storage goes; others' stay.")
    ] = False,
    root: RootOption = None,
    credentials: CredentialsOption = None,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the lifecycle rules of a storage's bucket, ours and others'."""
    begin_logging()
    if apply and remove:
        raise typer.BadParameter("--apply and --remove are two wishes; give one")
    storage = named_storage(id, root, credentials)
    endpoint = storage.join(load_config(config_path)).endpoint(storage.endpoint_name)
    with closing(S3Control(endpoint)) as control:
        if apply:
            apply_rules(control, storage)
        elif remove:
            remove_rules(control, storage)
        rules = control.lifecycle(storage.bucket)
    write_records(
        [_row(storage, rule) for rule in rules],
        [Column("rule", "rule"), Column("below", "below"), Column("does", "does"), Column("ours", "ours")],
        as_json=as_json,
    )
    if (
        not as_json
        and not apply
        and not remove
        and _ours(storage, rules) != sorted(rules_for(storage), key=lambda rule: rule.name)
    ):
        write_line()
        write_line(f"our rules are not what the storage says: pve-s3 lifecycle {id} --apply")


def thaw_volume(
    id: StorageArgument,
    volume: VolumeArgument,
    days: Annotated[int, typer.Option("--days", min=1, max=365, help="How long the copy stays.")] = DAYS,
    tier: Annotated[str, typer.Option("--tier", help="Expedited, Standard or Bulk: minutes, hours, half a day.")] = "",
    root: RootOption = None,
    credentials: CredentialsOption = None,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask for an archived backup to be made readable. Run it again to see how far it is."""
    begin_logging()
    storage = named_storage(id, root, credentials)
    chosen = volume_named(volume)
    tiers: dict[str, RestoreTier] = {"": "Standard", "standard": "Standard", "bulk": "Bulk", "expedited": "Expedited"}
    if tier.lower() not in tiers:
        raise typer.BadParameter("is Expedited, Standard or Bulk", param_hint="--tier")
    with closing(open_bucket(storage, load_config(config_path))) as bucket:
        state = thaw(bucket, storage.prefix + chosen.key, days=days, tier=tiers[tier.lower()])
    columns = [Column("volume", "volume"), Column("state", "state")]
    write_record({"volume": chosen.volname, "state": state}, columns, as_json=as_json)


def _ours(storage: Storage, rules: list[LifecycleRule]) -> list[LifecycleRule]:
    return sorted((rule for rule in rules if rule.name.startswith(rule_prefix(storage))), key=lambda rule: rule.name)


def _row(storage: Storage, rule: LifecycleRule) -> dict[str, object]:
    does = [f"{name} after {days} days" for days, name in rule.transitions]
    for days, what in (
        (rule.expire_days, "deleted"),
        (rule.expire_noncurrent_days, "old versions deleted"),
        (rule.abort_uploads_days, "unfinished uploads aborted"),
    ):
        does += [f"{what} after {days} days"] if days else []
    does += [] if rule.enabled else ["(disabled)"]
    return {
        "rule": rule.name,
        "below": rule.prefix,
        "does": ", ".join(does),
        "ours": "yes" if rule.name.startswith(rule_prefix(storage)) else "",
    }
