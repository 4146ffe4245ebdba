"""Unit and property tests of blockdev.iscsi; `initiator.py` is the other end of the wire."""
