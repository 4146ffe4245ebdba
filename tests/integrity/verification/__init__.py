"""Tests of how a ledger is believed."""
