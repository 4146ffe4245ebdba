"""Web console: a persistent machine per user, homes saved to S3."""
