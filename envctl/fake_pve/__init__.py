"""A Proxmox VE cluster that is not there, for tests and the demo: tasks, locks, slow clones, broken answers, rights."""
