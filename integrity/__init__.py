"""Hash-chained, signed ledger of every operation on a bucket.

Nothing of it is built yet; the name and its floor (above s3core) are kept.
"""
