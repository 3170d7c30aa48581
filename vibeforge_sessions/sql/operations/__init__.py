"""The operations of the SQLAlchemy repository: their statements, execution and outcome resolution."""
