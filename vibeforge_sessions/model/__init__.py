"""Session model and the rules of its values; no storage."""
