"""The `cowsync` command: a bucket and its mirror.

One rule: this is the outermost rim: commands are put together here, and cowsync's errors are given their exit codes.
"""

from typing import NoReturn

from cowsync import (
    apply_commands,
    decrypt_command,
    doctor_command,
    import_commands,
    key_commands,
    mirror_commands,
    plan_commands,
    snapshot_commands,
    watch_command,
)
from cowsync.errors import ClusterUnavailable, Held, Refused, StateDamaged
from cowsync.scan.engine import WorkerLost
from s3core.console import new_program, run_and_exit
from s3core.exit_codes import ExitCode, register

for _kind, _code in (
    (Held, ExitCode.REFUSED),
    (Refused, ExitCode.REFUSED),
    (StateDamaged, ExitCode.CORRUPT),
    (WorkerLost, ExitCode.UNAVAILABLE),
    (ClusterUnavailable, ExitCode.UNAVAILABLE),
):
    register(_kind, _code)

ABOUT = "Keep a mirror of a bucket: what changed, the exact list to copy, the copy itself, restore points."

app = new_program("cowsync", ABOUT)
app.command("init")(mirror_commands.init)
app.command("list")(mirror_commands.list_mirrors)
app.command("status")(mirror_commands.status)
app.command("doctor")(doctor_command.doctor)
app.command("plan")(plan_commands.plan)
app.command("import-inventory")(import_commands.import_inventory)
app.command("import-results")(import_commands.import_results)
app.command("plans")(plan_commands.plans)
app.command("show")(plan_commands.show)
app.command("explain")(plan_commands.explain)
app.command("export")(plan_commands.export)
app.command("apply")(apply_commands.apply)
app.command("run")(apply_commands.run)
app.command("watch")(watch_command.watch)
app.command("verify")(apply_commands.verify)
app.command("decrypt")(decrypt_command.decrypt)
app.add_typer(snapshot_commands.app)
app.add_typer(key_commands.app)


def main() -> NoReturn:
    run_and_exit(app, "cowsync")
