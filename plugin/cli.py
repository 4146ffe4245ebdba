"""The `pve-s3` command: Proxmox VE storages on S3, for operators and for units.

One rule: this is the outermost rim: commands are put together here. Proxmox VE itself never starts it: it asks the core.
"""

from typing import NoReturn

from plugin.archive_commands import app as archive_app
from plugin.cold_commands import lifecycle, thaw_volume
from plugin.disks.command import app as disks_app
from plugin.disks.command import disk_serve, run_gateway
from plugin.doctor_command import doctor
from plugin.mount.command import mount, mounts, unmount
from plugin.service.command import serve
from plugin.storage_commands import storages
from plugin.upgrade_command import upgrade_mounts
from plugin.volume_commands import download, list_volumes, remove, status, upload, usage, warm
from s3core.console import new_program, run_and_exit

ABOUT = "Look after Proxmox VE storages on S3: the core, the mounts, what is in the bucket."

app = new_program("pve-s3", ABOUT)
app.command("storages")(storages)
app.command("status")(status)
app.command("list")(list_volumes)
app.command("upload")(upload)
app.command("download")(download)
app.command("rm")(remove)
app.command("usage")(usage)
app.command("warm")(warm)
app.command("serve")(serve)
app.command("mount")(mount)
app.command("mounts")(mounts)
app.command("unmount")(unmount)
app.command("doctor")(doctor)
app.command("lifecycle")(lifecycle)
app.command("thaw")(thaw_volume)
app.command("upgrade-mounts")(upgrade_mounts)
app.command("gateway", hidden=True)(run_gateway)
app.command("disk-serve", hidden=True)(disk_serve)
app.add_typer(disks_app)
app.add_typer(archive_app)


def main() -> NoReturn:
    run_and_exit(app, "pve-s3")
