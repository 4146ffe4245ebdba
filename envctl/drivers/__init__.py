"""What makes machines: a port (`port`), Proxmox VE (`pve`), QEMU on this host (`qemu`)."""
