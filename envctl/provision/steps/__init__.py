"""What the steps of jobs do; `acts` has them by name. Each is *look, act, record, wait, verify*, and may be repeated from its
beginning."""
