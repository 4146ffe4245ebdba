"""Notifications of a source, as lines: which keys somebody should look at, and how far they were read."""
