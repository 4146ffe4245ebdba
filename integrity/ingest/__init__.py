"""Feeds: what servers tell of operations, as records of a ledger.

One rule: a module per feed, and each is pure: bytes in, events out. Files, buckets, sockets and the ledger are
`integrity.ingest_commands`' and `integrity.webhook`'s business. What each feed can tell is in docs/integrity/feeds.md.
"""
