"""The object store port and everything that stands directly on it.

The lowest floor: imports nothing of the other packages. `store` is the port, `errors` its three answers;
`memory`, `file` and `s3` are adapters; `retry`, `limit`, `observe` and `faulty` are wrappers; `build` stacks
them from a URL. `bucket` is the port to buckets that others fill, with adapters `memory_bucket` and `s3_bucket`,
stacked by `bucket_stack`. `probe` asks a store what it really honours; `settings` reads the configuration file.
"""
