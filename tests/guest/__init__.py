"""Real kernels in QEMU: initiators, file systems, multipath and LIO, which the machine under the tests need not have.

How to write a test here:

    def test_it(boot: Callable[[Hardware], Guest]) -> None:
        guest = boot(Hardware(forwards=(3260,)))       # 3 s; with systemd=True 10 s
        guest.run("s3block", "create", "file:///root/store/vm", "--size", "64M")
        daemon = guest.start("s3block", "serve", "vm", ...)    # a command that goes on
        daemon.wait_for("serving vm")                  # it takes 4 s to start under emulation
        guest.call(trees.write, root="/mnt/a", seed=1) # a function of tests/guest/inside, run in the guest
        guest.kill()                                   # power loss

`image` builds and caches what is booted: Debian 12 with its cloud kernel and all its modules, open-iscsi, multipath-tools,
LIO's tools, fio and mkfs for ext4, XFS and NTFS. The working tree is at /opt/bucketworks (commands in bin/, modules in
lib/), its dependencies at /opt/packages. The plain boot has no udev and no services: start `iscsid` or
`/lib/systemd/systemd-udevd --daemon` where a test needs it. The host's loopback is 10.0.2.2 in the guest (`guest.HOST`);
`Hardware.forwards` opens the way back. Where no guest can be booted every test here is skipped, with the reason.

Try something by hand: `python -m tests.guest COMMAND...` boots a guest, runs the command and prints what it printed.

One rule: one boot for many checks. A module boots its guest once, and each test leaves nothing behind in it.
"""
