"""Proxmox VE as a driver: a thin asynchronous client of its REST API, and what makes machines with it."""
