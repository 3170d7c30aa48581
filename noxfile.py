"""Run tests, lint and types in environments of their own: ``nox``, or ``nox -s lint``.

The sessions use the pinned versions of ``constraints.txt``. ``make`` does not need nox.
"""

from __future__ import annotations

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.error_on_missing_interpreters = True


def install(session: nox.Session) -> None:
    """Install the package with its development dependencies."""
    session.install("-c", "constraints.txt", "-e", ".[dev]")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests; further arguments go to pytest."""
    install(session)
    session.run("python", "-m", "pytest", "-n", "3", "--dist", "loadscope", "--no-loadscope-reorder", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format."""
    install(session)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types."""
    install(session)
    session.run("mypy")
