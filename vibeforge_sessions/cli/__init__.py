"""Command line ``vibeforge-sessions``: a thin layer over public functions."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    try:
        import rich  # noqa: F401, PLC0415 (both belong to an extra)
        import typer  # noqa: F401, PLC0415
    except ModuleNotFoundError as error:
        sys.stderr.write(f"error: {error.name} is not installed: pip install 'vibeforge-sessions[cli]'\n")
        sys.exit(1)
    from vibeforge_sessions.cli.commands import app  # noqa: PLC0415

    app()
