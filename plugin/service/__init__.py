"""The core: what Proxmox VE asks over a Unix socket, answered within its time whatever a store does.

server      the socket: lines, deadlines, heartbeats, the table of methods
place       one storage, opened: bucket, catalogue, cache, counters
lanes       bounded work on a store, in threads that a caller need not wait for
health      pure: when a storage counts as active
keeper      looks after one storage: probes, refreshes, numbers
storages    which storages there are; configuration reread
mounts      the processes that mount them
files       methods of files storages
disks       methods of disks, out of plugin.disks
collecting  once a day: old versions in buckets with Object Lock
metrics     what Prometheus is told
command     `pve-s3 serve`
"""
