"""The mount of a files storage: what Proxmox VE writes and reads as files is objects, complete and verified or not there.

naming      pure: which names are directories, finished files, files on their way; what the latter will be called
tree        pure: what is there, from the catalogue and from what is being written
handles     one file being written or read
filesystem  the operations, safe for many threads; knows no FUSE
library     libfuse3, found and bound
process     mounts, drains, unmounts; the control socket
command     `pve-s3 mount`, `pve-s3 mounts`
"""
