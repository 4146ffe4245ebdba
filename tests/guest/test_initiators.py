"""Linux's own initiator on our volumes, by each door: file systems, multipath, CHAP, growth, and what fio finds.

One rule: what is asserted is content, or what the daemon says that it was asked to do; that a command ended well is not
enough.
"""

from collections.abc import Callable, Iterator

import pytest

from tests.guest.doors import MIB, Door, GuestDoor, PortalDoor, Volume
from tests.guest.guest import Guest, GuestFailed, Hardware, answer_of
from tests.guest.inside import filesystems, fio, initiator, multipath, pve_kernel

SECRET, MUTUAL_SECRET = "one way secret 1", "other way secret"
SECRET_FILE, MUTUAL_SECRET_FILE = "one-way", "mutual"


def volumes(secrets: str) -> list[Volume]:
    chap = (
        'chap_user = "guest"',
        f'chap_secret_file = "{secrets}/{SECRET_FILE}"',
        'chap_mutual_user = "target"',
        f'chap_mutual_secret_file = "{secrets}/{MUTUAL_SECRET_FILE}"',
    )
    return [
        Volume("disk", 384, "disk"),
        Volume("sectors", 384, "disk", lun=1, sector_bytes=4096),
        Volume("grows", 320, "grows"),
        Volume("secret", 16, "secret", settings=chap),
        Volume("container", 64, "container"),
    ]


@pytest.fixture(scope="module", params=["portal", "lio"])
def door(
    request: pytest.FixtureRequest, boot: Callable[[Hardware], Guest], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Door]:
    secrets = {SECRET_FILE: SECRET, MUTUAL_SECRET_FILE: MUTUAL_SECRET}
    guest = boot(Hardware(memory_mib=2048))
    if request.param == "portal":
        directory = tmp_path_factory.mktemp("portal")
        for name, content in secrets.items():
            (directory / name).write_text(content + "\n")
            (directory / name).chmod(0o600)
        served = PortalDoor(guest, volumes(str(directory)), directory)
        try:
            yield served
            served.stop()
        finally:
            served.kill()
            guest.kill()
        return
    for name, content in secrets.items():
        guest.write(f"/root/{name}", content + "\n")
    lio = GuestDoor(guest, volumes("/root"))
    yield lio
    lio.stop()


@pytest.fixture(scope="module")
def disks(door: Door) -> dict[int, str]:
    """Device by sector size: two units of one target, logged in to once."""
    return {512: door.log_in("disk"), 4096: door.device("sectors")}


def test_units_of_one_target_are_disks_of_their_own(door: Door, disks: dict[int, str]) -> None:
    assert disks[512] != disks[4096]
    for sector_bytes, device in disks.items():
        for name in ("logical", "physical"):
            told = int(door.guest.call(initiator.attribute, device=device, name=f"queue/{name}_block_size"))
            assert told % sector_bytes == 0 if name == "physical" else told == sector_bytes
        assert door.guest.call(initiator.size_of, device=device) == 384 * MIB
    names = {door.guest.call(initiator.naa, device=device) for device in disks.values()}
    assert len(names) == 2
    assert all(name.startswith("naa.") for name in names)


@pytest.mark.parametrize("sector_bytes", [512, 4096])
@pytest.mark.parametrize("kind", ["ext4", "xfs", "ntfs"])
def test_a_file_system_keeps_its_files_and_trims(
    door: Door, disks: dict[int, str], kind: str, sector_bytes: int
) -> None:
    name = "disk" if sector_bytes == 512 else "sectors"
    before = door.status(name)["front"]["discards"]
    found = door.guest.call(
        filesystems.round_trip, seconds=240, kind=kind, device=disks[sector_bytes], seed=sector_bytes
    )
    assert found["files"] == 40
    assert found["trimmed"] > 100 * MIB
    assert door.status(name)["front"]["discards"] > before


def test_fio_finds_what_it_wrote_on_two_units_at_once(door: Door, disks: dict[int, str]) -> None:
    writes = {name: door.status(name)["front"]["write_bytes"] for name in ("disk", "sectors")}
    done = door.guest.call(fio.verify, seconds=300, devices=list(disks.values()), size_mib=24)
    assert len(done) == 2
    for name, before in writes.items():
        assert door.status(name)["front"]["write_bytes"] - before >= 24 * MIB


def test_fio_finds_what_it_wrote_sector_by_sector(door: Door, disks: dict[int, str]) -> None:
    door.guest.call(fio.verify, seconds=300, devices=[disks[512]], size_mib=12, smallest=512)


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_volume_grows_under_a_mounted_file_system(door: Door, kind: str) -> None:
    device = door.log_in("grows")
    written = door.guest.call(filesystems.begin, kind=kind, device=device, seed=3)
    size = door.guest.call(initiator.size_of, device=device) + 64 * MIB
    door.resize("grows", size)
    door.guest.call(initiator.rescan)
    assert door.guest.call(initiator.size_of, device=device) == size
    assert door.guest.call(filesystems.grow, kind=kind, device=device) > size * 0.85 - 8 * MIB
    assert door.guest.call(filesystems.finish, kind=kind, device=device) == written
    door.log_out("grows")


def test_chap_one_way_and_both_ways(door: Door) -> None:
    one_way = {
        "session__auth__authmethod": "CHAP",
        "session__auth__username": "guest",
        "session__auth__password": SECRET,
    }
    both = one_way | {"session__auth__username_in": "target", "session__auth__password_in": MUTUAL_SECRET}
    for settings in (one_way, both):
        device = door.log_in("secret", **settings)
        door.guest.run("dd", "if=/dev/urandom", "of=/root/content", "bs=1M", "count=4")
        door.guest.run("dd", "if=/root/content", f"of={device}", "bs=1M", "oflag=direct")
        door.log_out("secret")
        device = door.log_in("secret", **settings)
        door.guest.run("cmp", "-n", str(4 * MIB), "/root/content", device)
        door.log_out("secret")


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {
            "session__auth__authmethod": "CHAP",
            "session__auth__username": "guest",
            "session__auth__password": "not this one",
        },
        {"session__auth__authmethod": "CHAP", "session__auth__username": "other", "session__auth__password": SECRET},
        {
            "session__auth__authmethod": "CHAP",
            "session__auth__username": "guest",
            "session__auth__password": SECRET,
            "session__auth__username_in": "target",
            "session__auth__password_in": "not this either",
        },
    ],
    ids=["none", "secret", "user", "the target's secret"],
)
def test_who_does_not_know_the_secret_gets_no_disk(door: Door, wrong: dict[str, str]) -> None:
    """In the last case it is the initiator that refuses the target."""
    volume = door.volumes["secret"]
    with pytest.raises(GuestFailed, match=r"authorization failure|CHAP|login to"):
        door.log_in("secret", **wrong)
    assert door.guest.call(initiator.devices, portal=door.portal, target=volume.iqn, lun=0) == []
    door.guest.call(initiator.forget, portal=door.portal, target=volume.iqn)


def test_io_goes_on_when_one_of_two_paths_dies(door: Door, disks: dict[int, str]) -> None:
    guest = door.guest
    second = door.log_in("disk", door.portals[1], **multipath.QUICK)
    assert guest.call(initiator.naa, device=second) == guest.call(initiator.naa, device=disks[512])
    device = guest.call(multipath.gather, paths=[disks[512], second])
    assert guest.call(multipath.paths, device=device) == {disks[512]: "active", second: "active"}
    running = guest.begin(fio.verify, devices=[device], size_mib=48, rate_mib=6)
    guest.call(multipath.wait_for_io, paths=[disks[512], second])
    door.cut_second_path()
    guest.call(multipath.wait_for_states, device=device, states={disks[512]: "active", second: "failed"})
    assert not running.ended(), "it was over before the path died"
    assert answer_of(running.wait(240)) == [{"write_mib": 48, "errors": 0}]
    door.mend_second_path()
    guest.call(multipath.wait_for_states, device=device, states={disks[512]: "active", second: "active"})
    guest.call(multipath.dissolve, device=device)
    door.log_out("disk", door.portals[1])


def test_a_proxmox_node_has_a_disk_as_a_device(door: Door) -> None:
    """What containers and raw exports get of a disk: `plugin.disks.kernel` with the real open-iscsi and udev."""
    target, before = door.volumes["container"].iqn, door.status("container")["front"]["write_bytes"]
    assert door.guest.call(pve_kernel.used_as_a_container_does, portal=door.portal, target=target, seconds=300) == []
    assert door.status("container")["front"]["write_bytes"] > before
