"""Figures of this machine: a volume through its portal on a loopback object store, beside tgt, in one run.

`python -m bench` (or `make bench`) runs everything; `docs/benchmarks.md` says how to read what it prints.
"""
