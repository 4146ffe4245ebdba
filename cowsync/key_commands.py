"""`cowsync key list|add|remove`: who may open an encrypted mirror.

One rule: only what locks the data key changes, never the data key; objects on the mirror stay as they are.
"""

from typing import Annotated

import typer

from cowsync.arguments import MirrorArgument, mirror_of, usage
from cowsync.errors import Refused
from cowsync.mirror import Mirror, secret_for
from cowsync.mirror_commands import moment
from cowsync.sealing.keys import KINDS, Slot, Vault
from cowsync.work import alone
from s3core.console import Column, JsonOption, new_app, write_json, write_line, write_note, write_records
from s3core.credentials import KEY_SOURCES, check_key_source
from s3core.endpoint_commands import ConfigOption

app = new_app("key", "Who may open an encrypted mirror.")


@app.command("list")
def list_slots(name: MirrorArgument, config_path: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show the key slots of an encrypted mirror: each is opened by one passphrase or key file."""
    with mirror_of(config_path, name) as mirror:
        rows = [_row(slot) for slot in _vault(mirror).slots()]
    columns = [
        Column("id", "ID"),
        Column("opened_by", "OPENED BY"),
        Column("created", "CREATED (UTC)", moment),
        Column("places", "LIES IN"),
    ]
    write_records(rows, columns, as_json=as_json)
    if not rows and not as_json:
        write_note(f"mirror {name} has no key slot yet: its first run makes one")


@app.command("add")
def add(
    name: MirrorArgument,
    new_key: Annotated[
        str, typer.Option("--new-key", metavar="SOURCE", help=f"The key to add: {KEY_SOURCES}.", show_default=False)
    ],
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add a slot, so that another passphrase or key file opens the mirror as well. The configured one must open it."""
    try:
        source = check_key_source(new_key)
    except ValueError as error:
        usage(f"--new-key: {error}")
    if not source:
        usage(f"--new-key must be {KEY_SOURCES}")
    with mirror_of(config_path, name) as mirror, alone(mirror):
        made = _vault(mirror).add(secret_for(source, f"mirror {name}, the new one")(True))
    if as_json:
        write_json(_row(made))
    else:
        write_line(f"slot {made.id} added to mirror {name}: opened by the new {KINDS[made.kind]}")


@app.command("remove")
def remove(
    name: MirrorArgument,
    slot: Annotated[str, typer.Argument(metavar="SLOT", help="A slot, by its id.", show_default=False)],
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove a slot: what opened it opens the mirror no longer. The last one stays."""
    with mirror_of(config_path, name) as mirror, alone(mirror):
        _vault(mirror).remove(slot)
    if as_json:
        write_json({"removed": slot})
    else:
        write_line(f"slot {slot} of mirror {name} removed")
        write_note(
            "who kept a copy of the slot, or a version of it on the mirror, can still open the mirror with its key"
        )


def _vault(mirror: Mirror) -> Vault:
    if mirror.vault is None or not mirror.encrypted:
        raise Refused(f"mirror {mirror.name} is not encrypted", hint=f"no key is named in [mirror.{mirror.name}]")
    return mirror.vault


def _row(slot: Slot) -> dict[str, object]:
    return {
        "id": slot.id,
        "opened_by": KINDS[slot.kind],
        "created": slot.created,
        "places": " and ".join(slot.places) or "neither",
    }
