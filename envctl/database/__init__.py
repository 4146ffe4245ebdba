"""What the console knows, in one database: SQLite (WAL) for one process, PostgreSQL for several."""
