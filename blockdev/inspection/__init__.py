"""`s3block check`: whether everything a volume's log says is true of what lies in the bucket, and what can be put right.

One rule: looking believes nothing it has not read, and changes nothing; mending is a module of its own.

`inspector` is the order of things, `chain` the log and its roots, `points` the states that are kept (the live map and
the snapshots), `deep` the content, `books` what is counted meanwhile, `repair` what can be mended without guessing.
"""
