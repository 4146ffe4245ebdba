"""The local journal: acknowledged writes that S3 does not hold yet. Not a cache: it is the data.

`format` bytes, `file` the port to a durable file, `journal` append, sync, recover, reclaim, `reader` for the worker.
Format: docs/formats/journal.md.
"""
