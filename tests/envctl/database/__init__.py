"""SQLite and PostgreSQL behave the same."""
