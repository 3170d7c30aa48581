"""Owned and joined transactions: retries, time limits, statement execution and error translation."""
