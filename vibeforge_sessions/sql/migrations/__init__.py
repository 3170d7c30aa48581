"""Schema status, running revisions, and the Alembic of a host application."""
