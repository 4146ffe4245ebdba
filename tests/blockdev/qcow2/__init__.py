"""Tests of blockdev.qcow2, most against QEMU's own tool."""
