"""Bucketworks beside its peers: one matrix for all, on one store, in one run (`make bench-peers`)."""
