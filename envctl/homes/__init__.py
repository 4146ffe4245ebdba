"""Homes in a bucket: heads, snapshots, what is kept, and how their files are read."""
