"""Schema status, migration scripts, and integration with the Alembic of an application."""
