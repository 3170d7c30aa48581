"""Integrations with frameworks; each module needs the extra of its name."""
