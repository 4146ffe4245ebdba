"""QEMU on this host as a driver: a copy-on-write disk over a template, a process for each machine."""
