"""Documents that are run: the shell blocks of README, tutorials and runbook, word for word, on a real S3 server."""
