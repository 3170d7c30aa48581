"""Abstract repositories and the service-provider interface for implementations."""
