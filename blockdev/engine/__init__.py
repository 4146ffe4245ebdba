"""The volume: `front` acknowledges, `destager` carries to the bucket, `fetch` brings back, `recovery` begins again.

Two processes: the front (one thread; sockets, SCSI, journal append, index, cached reads) and the worker (everything that
compresses, waits for the store or touches LMDB). They share the journal file, the cache file and the messages of `link`.
"""
