"""Which objects changed since last time, the exact list to copy, the mirror, restore points.

One rule: what is remembered is the source as it was when the mirror was last right. Read first: docs/cowsync/README.md,
then `work` (a run from scan to publish), then the package of the step you care about: `scan`, `plan`, `apply`, `base`.
"""
