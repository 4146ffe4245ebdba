"""Which objects changed since last time, the exact list to copy, the mirror, restore points.

Nothing of it is built yet; the name and its floor (above integrity and s3core, beside blockdev) are kept.
"""
