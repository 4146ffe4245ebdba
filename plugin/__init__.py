"""Proxmox VE storage plugin: thin Perl on a Python core.

Nothing of it is built yet; the name and its floor (the highest, beside envctl) are kept.
"""
