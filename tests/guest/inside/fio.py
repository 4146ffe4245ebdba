"""fio with verification: every block that was written carries a CRC32C of itself, and is read again at the end."""

import json
from typing import Any

from tests.guest.inside.commands import run


def verify(
    devices: list[str],
    size_mib: int = 48,
    *,
    seconds: float = 240.0,
    depth: int = 16,
    smallest: int = 4096,
    rate_mib: int = 0,
) -> list[dict[str, Any]]:
    """Random writes of `smallest` bytes to 128 KiB to all of the devices at once, then all of it read and compared.

    Raises with fio's words at the first error or difference; otherwise what each device's job did. `rate_mib` holds each
    job down to so many MiB/s, so that it lasts."""
    common = (
        *("--ioengine=libaio", "--direct=1", "--rw=randwrite", f"--bsrange={smallest}-128k", f"--iodepth={depth}"),
        *(f"--size={size_mib}m", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--verify_state_save=0"),
        *("--randrepeat=1", "--output-format=json", "--fsync=64"),
        *((f"--rate={rate_mib}m",) if rate_mib else ()),
    )
    jobs = [word for number, device in enumerate(devices) for word in (f"--name=job{number}", f"--filename={device}")]
    text = run("fio", *common, *jobs, seconds=seconds)
    found = json.loads(text[text.index("{\n") :])
    for job in found["jobs"]:
        assert job["error"] == 0, text
        assert job["write"]["io_bytes"] >= size_mib << 20, text
        assert job["read"]["io_bytes"] >= job["write"]["io_bytes"], text
    return [{"write_mib": job["write"]["io_bytes"] >> 20, "errors": job["error"]} for job in found["jobs"]]
