"""Session model and the rules for its values, without storage code."""
