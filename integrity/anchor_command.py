"""`s3integrity anchor`: a timestamp of the ledger's newest checkpoint, or a look at one that is kept.

One rule: a command only.
"""

from pathlib import Path
from typing import Annotated

import typer

from integrity.anchoring import anchor, kept_stamp, read_roots
from integrity.cosigning import Network
from integrity.place import opened_ledger
from integrity.record import timestamp
from s3core.console import Column, JsonOption, write_note, write_record
from s3core.endpoint_commands import ConfigOption
from s3core.settings import ConfigError, load_config


def anchor_ledger(
    name: Annotated[str, typer.Argument(metavar="LEDGER", help="Its name in the configuration.")],
    config_path: ConfigOption = None,
    check: Annotated[
        int | None,
        typer.Option(metavar="SIZE", help="Ask nobody: verify the timestamp kept of that many records.", min=0),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write the timestamp to this file as well, to keep it outside the bucket.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Have a time-stamping authority (the setting `timestamps`, RFC 3161) say that the ledger's newest checkpoint is there now.

    The answer is kept in the ledger. Beside it, `openssl ts -verify` needs only the checkpoint's first three lines."""
    with opened_ledger(name, load_config(config_path)) as ledger:
        roots = read_roots(ledger.settings.timestamp_roots)
        if check is not None:
            stamp = kept_stamp(ledger, check, roots)
        elif not ledger.settings.timestamps:
            raise ConfigError(
                f"[ledger.{name}]: timestamps is not set", hint="give it the address of an RFC 3161 authority"
            )
        else:
            stamp = anchor(ledger, Network(), roots)
    if output is not None:
        output.write_bytes(stamp.token)
    write_record(
        {
            "ledger": name,
            "size": stamp.checkpoint.size,
            "root": stamp.checkpoint.root.hex(),
            "time": timestamp(stamp.unix_s),
            "verified": stamp.verified,
        },
        [
            Column("size", "records", lambda size: f"{size:,}"),
            Column("root", "root"),
            Column("time", "there at"),
            Column("verified", "verified", lambda held: "yes" if held else "no: timestamp_roots is not set"),
        ],
        as_json=as_json,
    )
    if not stamp.verified:
        write_note("only what the timestamp is of was compared; set timestamp_roots to have its signature verified")
