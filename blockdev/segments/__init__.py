"""What lies in the bucket: frames, containers, commit records, roots, and every key ever written (`paths`).

Formats: docs/formats/.
"""
