"""A volume as a file system of this host, mounted again after every boot: `s3block mount` and `umount`.

`plan` says which steps lead there, and back; `units` writes what systemd reads; `initiator` is the kernel's end of iSCSI;
`host` is the only module that touches the host.

One rule: what is wanted is remembered in two places only, the configuration file (how the volume is served) and a mount unit
(where it belongs). Everything else is looked up each time, so a command that was killed is finished by the same command.
"""
