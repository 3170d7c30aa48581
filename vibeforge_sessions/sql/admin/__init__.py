"""Statistics and maintenance for the DBA."""
