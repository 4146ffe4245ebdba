"""The `s3block` command: disks in object stores.

One rule: this is the outermost rim: commands are put together here, and errors of a volume are given their exit codes.
"""

from typing import NoReturn

from blockdev import (
    content_commands,
    image_commands,
    key_commands,
    lio_commands,
    mount_commands,
    serve_command,
    shell_command,
    snapshot_commands,
    top_command,
    upkeep_commands,
    volume_commands,
)
from blockdev.errors import (
    AttachRefused,
    CorruptFormat,
    CorruptJournal,
    ImageRefused,
    JournalFull,
    KeyRefused,
    LocalDiskFailed,
    MediumError,
    NotReady,
    Refused,
    StoreUnreachable,
)
from blockdev.iscsi.errors import PortalError
from s3core.console import new_program, run, run_and_exit
from s3core.exit_codes import ExitCode, register

for _kind, _code in (
    (CorruptFormat, ExitCode.CORRUPT),
    (CorruptJournal, ExitCode.CORRUPT),
    (MediumError, ExitCode.CORRUPT),
    (AttachRefused, ExitCode.REFUSED),
    (KeyRefused, ExitCode.REFUSED),
    (NotReady, ExitCode.REFUSED),  # Fenced is one of these
    (PortalError, ExitCode.REFUSED),
    (Refused, ExitCode.REFUSED),
    (ImageRefused, ExitCode.REFUSED),
    (LocalDiskFailed, ExitCode.LOCAL),
    (JournalFull, ExitCode.LOCAL),
    (StoreUnreachable, ExitCode.UNAVAILABLE),
):
    register(_kind, _code)

ABOUT = "Disks in object stores: make them, serve them over iSCSI, look after them."

app = new_program("s3block", ABOUT)
app.command("create")(volume_commands.create)
app.command("list")(volume_commands.list_volumes)
app.command("info")(volume_commands.info)
app.command("serve")(serve_command.serve)
app.command("mount")(mount_commands.mount)
app.command("umount")(mount_commands.umount)
app.command("top")(top_command.top)
app.command("check")(content_commands.check)
app.command("import")(image_commands.import_volume)
app.command("export")(image_commands.export)
app.command("delete")(volume_commands.delete)
app.add_typer(snapshot_commands.app)
app.command("clone")(snapshot_commands.clone)
app.command("rollback")(snapshot_commands.rollback)
app.command("diff")(snapshot_commands.diff)
app.command("gc")(upkeep_commands.gc)
app.command("resize")(upkeep_commands.resize)
app.command("promote")(upkeep_commands.promote)
app.add_typer(key_commands.app)
app.add_typer(lio_commands.app)
app.add_typer(mount_commands.app)
app.command("shell")(shell_command.command(lambda words: run(app, "s3block", words)))


def main() -> NoReturn:
    run_and_exit(app, "s3block")
