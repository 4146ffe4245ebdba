"""The production door: the kernel's target (LIO) with this program as its user space backstore (`target_core_user`).

    netlink.py   generic netlink messages of the family TCM-USER, as bytes and values
    ring.py      the mailbox and the command ring that kernel and handler share, over a memoryview
    device.py    one device: commands out of the ring, SCSI, answers into the ring
    handler.py   the rim: sysfs, uio, mmap, the netlink socket, and which device belongs to which volume

Set up by `blockdev/lio`. Sources: Documentation/target/tcmu-design.rst and include/uapi/linux/target_core_user.h of Linux.
"""
