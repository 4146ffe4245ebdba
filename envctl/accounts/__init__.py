"""Who may do what: passwords, second factors, sign-ins, tokens, rights, quotas."""
