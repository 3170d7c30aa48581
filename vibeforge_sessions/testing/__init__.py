"""The contract of `SessionRepository` as a test class: whoever writes a repository subclasses it.

::

    from vibeforge_sessions.testing import SessionRepositoryContract

    class TestMyRepository(SessionRepositoryContract):
        @pytest.fixture
        def new_repository(self):
            return MyRepository  # called without arguments, or with session_type=…

Every call of `new_repository` gives a repository over storage of its own, empty.
"""

from __future__ import annotations

try:
    import pytest
except ModuleNotFoundError as error:
    raise ImportError("vibeforge_sessions.testing needs pytest: pip install 'vibeforge-sessions[testing]'") from error

# so that a failing assertion of the contract shows its values, as one in a test module does
pytest.register_assert_rewrite(
    *(
        f"{__name__}.{room}"
        for room in (
            "base",
            "sessions",
            "updates",
            "histories",
            "listings",
            "stored_values",
            "threads",
            "subclasses",
            "diagnostics",
        )
    )
)

from vibeforge_sessions.testing.base import NewRepository, RepositoryTests  # noqa: E402 (rewriting comes first)
from vibeforge_sessions.testing.diagnostics import DiagnosticTests  # noqa: E402
from vibeforge_sessions.testing.histories import HistoryTests  # noqa: E402
from vibeforge_sessions.testing.listings import ListingTests  # noqa: E402
from vibeforge_sessions.testing.sessions import SessionTests  # noqa: E402
from vibeforge_sessions.testing.stored_values import StoredValueTests  # noqa: E402
from vibeforge_sessions.testing.subclasses import SubclassTests  # noqa: E402
from vibeforge_sessions.testing.threads import ThreadTests  # noqa: E402
from vibeforge_sessions.testing.updates import UpdateTests  # noqa: E402

__all__ = ["NewRepository", "SessionRepositoryContract"]


class SessionRepositoryContract(
    SessionTests,
    UpdateTests,
    HistoryTests,
    DiagnosticTests,
    SubclassTests,
    ListingTests,
    StoredValueTests,
    ThreadTests,
    RepositoryTests,
):
    """The whole contract. A subclass has a fixture ``new_repository``; nobody is exempt from a test."""
