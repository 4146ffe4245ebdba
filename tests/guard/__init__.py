"""The regression guard: what the hot paths cost in counts that every machine agrees on, against a table in the tree."""
