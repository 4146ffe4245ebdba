"""A hash-chained, signed ledger of every operation on a bucket: what was done, by whom, when; and what was done outside it.

One rule: what a reader believes goes back to a public key that was never read from the bucket. Read first:
docs/integrity/README.md, then `record` (one line of the ledger), `tlog` (the trees over them), `writer` (how they get
there), `verification` (how they are believed).
"""
