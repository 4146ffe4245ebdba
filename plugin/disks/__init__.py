"""Disks of guests on `s3block` volumes: what Proxmox VE's storage verbs mean for volumes below one place in a store.

One rule: a volume is changed by `s3block`'s commands, in processes of their own, and one that is served is asked over its
control socket (`blockdev.control`). Nothing here knows how a volume is stored.
"""
