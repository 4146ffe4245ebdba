"""Steps from one schema to the next, run by Alembic inside `Database.migrate`. A released step never changes."""
