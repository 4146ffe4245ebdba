"""The extent map: extent number to where its frames and patches are. A cache of S3 and journal.

`intervals` pure overlay arithmetic, `format` value bytes, `value` what an extent is made of and how entries change it,
`lmdb_map` the map on LMDB, the only module that imports lmdb.
"""
