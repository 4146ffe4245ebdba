"""Web console: a persistent VM per user, homes saved to S3.

Nothing of it is built yet; the name and its floor (the highest, beside plugin) are kept.
"""
