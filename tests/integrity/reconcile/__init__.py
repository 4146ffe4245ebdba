"""Tests of `integrity.reconcile`."""
