"""The `s3integrity` command: a ledger of what is done to buckets.

One rule: this is the outermost rim: commands are put together here, and the ledger's errors are given their exit codes.
"""

from typing import NoReturn

from integrity import (
    doctor_command,
    ingest_commands,
    ledger_commands,
    reconcile_commands,
    report_commands,
    verify_commands,
)
from integrity.anchor_command import anchor_ledger
from integrity.errors import Behind, LedgerError, Malformed, NotEnrolled, Rejected, SlotsTaken, Tampered
from integrity.witness_commands import app as witness
from integrity.witness_commands import cosign_ledger
from s3core.console import new_program, run_and_exit
from s3core.exit_codes import ExitCode, register

for _kind, _code in (
    (Tampered, ExitCode.TAMPERED),
    (Rejected, ExitCode.TAMPERED),
    (Malformed, ExitCode.FINDING),
    (Behind, ExitCode.REFUSED),
    (NotEnrolled, ExitCode.REFUSED),
    (SlotsTaken, ExitCode.REFUSED),
    (LedgerError, ExitCode.REFUSED),
):
    register(_kind, _code)

ABOUT = "Keep a signed ledger of every operation on a bucket, and find what was done outside it."

app = new_program("s3integrity", ABOUT)
app.command("init")(ledger_commands.init)
app.command("join")(ledger_commands.join)
app.command("enrol")(ledger_commands.enrol)
app.command("retire")(ledger_commands.retire)
app.command("rotate")(ledger_commands.rotate)
app.command("slots")(ledger_commands.slots)
app.command("status")(ledger_commands.status)
app.command("record")(ledger_commands.record)
app.command("seal")(ledger_commands.seal)
app.command("serve")(ledger_commands.serve)
app.command("adopt")(ledger_commands.adopt)
app.command("log")(report_commands.log)
app.command("tail")(report_commands.tail)
app.add_typer(report_commands.report)
app.command("doctor")(doctor_command.doctor)
app.command("cosign")(cosign_ledger)
app.command("anchor")(anchor_ledger)
app.add_typer(witness)

app.command("reconcile")(reconcile_commands.reconcile)
app.command("explain")(reconcile_commands.explain)
app.command("verify")(verify_commands.verify)
app.command("prove")(verify_commands.prove)
app.command("check")(verify_commands.check)
app.command("fsck")(verify_commands.fsck)
app.add_typer(verify_commands.pins_app)

app.command("ingest")(ingest_commands.ingest)
app.command("webhook")(ingest_commands.webhook)


def main() -> NoReturn:
    run_and_exit(app, "s3integrity")
