"""People, logins, tokens, quotas."""
