"""`s3integrity witness …` and `s3integrity cosign`: the two sides of a witness.

One rule: commands only: what is decided is decided in `tlog.witness` and `cosigning`.
"""

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from integrity.cosigning import (
    Cosigned,
    Network,
    Told,
    WitnessAddress,
    cosign_newest,
    keep_cosigned,
    ledger_nodes,
    newest_head,
    parse_witnesses,
    raise_evidence,
)
from integrity.errors import LedgerError, Tampered
from integrity.place import opened_ledger
from integrity.record import timestamp
from integrity.tlog.cosignature import COSIGNATURE_ED25519, COSIGNATURE_ML_DSA_44, unix_of
from integrity.tlog.note import add_signatures, open_note, split_note
from integrity.tlog.tree import consistency_proof
from integrity.tlog.witness import write_request
from integrity.witness_state import WitnessFolder, add_log, create
from s3core.clock import SystemClock
from s3core.console import Column, JsonOption, new_app, write_json, write_line, write_note, write_records
from s3core.endpoint_commands import ConfigOption
from s3core.exit_codes import ExitCode
from s3core.logs import configure_logging
from s3core.service_manager import ServiceManager
from s3core.settings import load_config

ABOUT = "Be a witness: cosign the checkpoints of logs that only ever grew."

app = new_app("witness", ABOUT)

FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="The witness's folder: its key and its memory.")]
LogOption = Annotated[
    list[str], typer.Option("--log", metavar="VKEY", help="Public key of a log to cosign; may be given several times.")
]


@app.command()
def keygen(
    folder: FolderArgument,
    name: Annotated[str, typer.Option(help="Its name in cosignatures, such as witness.example.com/w1.")],
    log: LogOption = [],  # noqa: B006  # typer copies it; None would be told as a default
    ml_dsa: Annotated[
        bool, typer.Option("--ml-dsa", help="A second key, ML-DSA-44, against quantum computers.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a witness: a folder with a new key. Prints the public keys, for the setting `witnesses` of those it serves."""
    kinds = (COSIGNATURE_ED25519, COSIGNATURE_ML_DSA_44) if ml_dsa else (COSIGNATURE_ED25519,)
    keys = create(folder, name, kinds)
    for vkey in log:
        add_log(folder, vkey)
    if as_json:
        write_json({"name": name, "vkeys": [key.vkey for key in keys], "logs": log})
        return
    for key in keys:
        write_line(key.vkey)
    write_note(f"it knows {len(log)} log(s); the others are lines in {folder / 'logs'}")


@app.command()
def serve(
    folder: FolderArgument,
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where it answers.")] = "127.0.0.1:8466",
) -> None:
    """Answer logs that ask for cosignatures, until stopped. Every checkpoint it cosigns is on the disk before it says so.

    POST /add-checkpoint for logs, GET /HASH/checkpoint for monitors (C2SP tlog-witness), GET /healthz. No TLS: what it
    says is signed; put a proxy before it where requests come from outside."""
    from integrity.witness_server import run

    configure_logging("info", "text")
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit():
        raise typer.BadParameter(f"{listen!r} is not HOST:PORT", param_hint="--listen")
    address = host.strip("[]")
    memory = WitnessFolder.open(folder)
    try:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.create_server((address, int(port)), family=family, reuse_port=False) as listening:
            if not memory.witness.logs:
                write_note(f"it knows no log: write their keys into {folder / 'logs'}, a line each, and start it again")
            write_note(f"witness for {len(memory.witness.logs)} log(s) at http://{host}:{listening.getsockname()[1]}")
            run(memory, listening, ServiceManager(os.environ))
    finally:
        memory.close()


@app.command()
def sign(
    folder: FolderArgument,
    request: Annotated[Path, typer.Argument(metavar="FILE", help="The request, from `s3integrity cosign --request`.")],
) -> None:
    """Cosign one checkpoint that came as a file. Prints the signature lines, for `s3integrity cosign --attach`.

    The same checks and the same memory as `serve`, for a witness without a network."""
    memory = WitnessFolder.open(folder)
    try:
        answer = memory.add(request.read_bytes(), int(SystemClock().time()))
    finally:
        memory.close()
    if answer.status == 200:
        write_line(answer.body.decode().rstrip("\n"))
        return
    if answer.status == 409:
        last = answer.body.decode().strip()
        raise LedgerError(
            answer.said, hint=f"make the request anew: s3integrity cosign LEDGER --request FILE --old {last}"
        )
    if answer.status == 422:
        raise Tampered(answer.said, where=str(request))
    raise LedgerError(f"not cosigned ({answer.status}): {answer.said}")


def cosign_ledger(
    name: Annotated[str, typer.Argument(metavar="LEDGER", help="Its name in the configuration.")],
    config_path: ConfigOption = None,
    request: Annotated[
        Path | None,
        typer.Option(help="Write the request for a witness without a network to this file, and ask nobody."),
    ] = None,
    old: Annotated[int, typer.Option(help="With --request: the size that witness cosigned last.", min=0)] = 0,
    attach: Annotated[
        Path | None, typer.Option(help="Attach the signature lines in this file, from `s3integrity witness sign`.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Have the witnesses cosign the ledger's newest checkpoint (the setting `witnesses`), and keep their cosignatures on it.

    Whatever a witness says, the ledger goes on. Ends with 11 where some did not answer, 6 where none did, and 12 where one
    has seen another history than this, which is what witnesses are for."""
    with opened_ledger(name, load_config(config_path)) as ledger:
        witnesses = parse_witnesses(ledger.settings.witnesses)
        if request is not None:
            head = newest_head(ledger)
            size = head.checkpoint.size
            if old > size:
                raise LedgerError(f"the witness cosigned {old:,} records, and the ledger has {size:,} now")
            with ledger_nodes(ledger, head) as nodes:
                proof = consistency_proof(old, size, nodes)
            request.write_bytes(write_request(old, proof, head.note))
            write_note(f"{request}: take it to the witness, and run there: s3integrity witness sign DIR {request.name}")
            return
        if not witnesses:
            raise LedgerError(
                f"[ledger.{name}] names no witness", hint="add `URL VKEY` to `witnesses`, see docs/integrity/witness.md"
            )
        if attach is not None:
            lines = attach.read_bytes()
            found = keep_cosigned(ledger, lambda head: _attached(head.note, lines, witnesses))
        else:
            found = cosign_newest(ledger, Network()) or Cosigned(b"", ())
    _tell(found, as_json=as_json)


def _attached(note: bytes, lines: bytes, witnesses: Sequence[WitnessAddress]) -> Cosigned:
    """The note with signature lines that came as a file: those of known witnesses which hold for this very checkpoint."""
    text, _ = split_note(note)
    keys = [cosigner for one in witnesses for cosigner in one.cosigners]
    signatures = open_note((text + "\n").encode() + lines.strip() + b"\n", keys).signatures
    told = []
    for one in witnesses:
        own = {(key.name, key.key_id) for key in one.cosigners}
        mine = tuple(line for line in signatures if (line.name, line.key_id) in own)
        if mine:
            told.append(Told(one, "cosigned", "attached", unix_of(mine[0].signature), signatures=mine))
    return Cosigned(add_signatures(note, signatures), tuple(told))


def _tell(found: Cosigned, *, as_json: bool) -> None:
    write_records(
        [
            {"witness": one.witness.name, "url": one.witness.url, "verdict": one.verdict, "message": one.message}
            | ({"time": timestamp(one.unix_s)} if one.unix_s else {})
            | ({"size": one.size, "evidence": one.evidence.decode()} if one.evidence else {})
            for one in found.told
        ],
        [Column("witness", "WITNESS"), Column("verdict", "VERDICT"), Column("time", "TIME"), Column("message", "")],
        as_json=as_json,
    )
    cosigned = sum(one.verdict == "cosigned" for one in found.told)
    raise_evidence(found)
    if cosigned < len(found.told):
        raise typer.Exit(ExitCode.PARTIAL if cosigned else ExitCode.UNAVAILABLE)
