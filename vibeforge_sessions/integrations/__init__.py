"""Integrations with frameworks; each module requires an extra of this package."""
