"""A volume behind the kernel's iSCSI target (LIO): made, compared, taken away. Data never passes here.

    wanted.py   what a volume is to look like in the kernel, from its settings and its daemon's status
    found.py    what the kernel has: configfs and sysfs, read and never written
    plan.py     from both to a list of steps; pure
    kernel.py   the steps, by rtslib; modules, configfs, the lock against another of us
    saved.py    the configuration that targetcli and its boot service restore
    condition.py  what `s3block lio status` tells and what it calls a problem; pure

Ours is a device of the backstore `user` whose `dev_config` begins with `bucketworks/`, a LUN that leads to one, and a
target while it has no LUN of anybody else. Nothing else is ever changed. Who serves the device: `blockdev/tcmu`.
"""
