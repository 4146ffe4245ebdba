"""The bucket held against the ledger. Read first: `acts` (what the records of a key say together), then `judgement`."""
