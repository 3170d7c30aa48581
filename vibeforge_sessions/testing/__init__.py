"""The contract of `SessionRepository` as a test class: whoever writes a repository subclasses it.

::

    from vibeforge_sessions.testing import SessionRepositoryContract

    class TestMyRepository(SessionRepositoryContract):
        @pytest.fixture
        def new_repository(self):
            return MyRepository  # called without arguments, or with session_type=…

Every call of `new_repository` gives a repository over storage of its own, empty. `AsyncSessionRepositoryContract` asks
the same of an `AsyncSessionRepository`, with a fixture ``new_async_repository``.
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
            "aio",
            "base",
            "partial_dicts",
            "sessions",
            "updates",
            "histories",
            "holds",
            "listings",
            "observation",
            "stored_values",
            "threads",
            "subclasses",
            "diagnostics",
        )
    )
)

from vibeforge_sessions.testing.aio import AsyncTests, NewAsyncRepository, Run  # noqa: E402 (rewriting comes first)
from vibeforge_sessions.testing.base import NewRepository, RepositoryTests  # noqa: E402 (rewriting comes first)
from vibeforge_sessions.testing.diagnostics import DiagnosticTests  # noqa: E402
from vibeforge_sessions.testing.histories import HistoryTests  # noqa: E402
from vibeforge_sessions.testing.holds import KeepingTests  # noqa: E402
from vibeforge_sessions.testing.listings import ListingTests  # noqa: E402
from vibeforge_sessions.testing.observation import ObservationTests  # noqa: E402
from vibeforge_sessions.testing.partial_dicts import PartialDictTests  # noqa: E402
from vibeforge_sessions.testing.sessions import SessionTests  # noqa: E402
from vibeforge_sessions.testing.stored_values import StoredValueTests  # noqa: E402
from vibeforge_sessions.testing.subclasses import SubclassTests  # noqa: E402
from vibeforge_sessions.testing.threads import ThreadTests  # noqa: E402
from vibeforge_sessions.testing.updates import UpdateTests  # noqa: E402

__all__ = ["AsyncSessionRepositoryContract", "NewAsyncRepository", "NewRepository", "Run", "SessionRepositoryContract"]


class SessionRepositoryContract(
    SessionTests,
    UpdateTests,
    PartialDictTests,
    HistoryTests,
    DiagnosticTests,
    SubclassTests,
    KeepingTests,
    ListingTests,
    ObservationTests,
    StoredValueTests,
    ThreadTests,
    RepositoryTests,
):
    """The whole contract. A subclass has a fixture ``new_repository``; nobody is exempt from a test."""


class AsyncSessionRepositoryContract(AsyncTests, SessionRepositoryContract):
    """The whole contract, of an asynchronous repository. A subclass has a fixture ``new_async_repository``.

    What that makes is called within an event loop of the test's own, and closed there at the end. The fixture ``run``
    runs a coroutine on the same loop, for what else has to be done there::

        @pytest.fixture
        def new_async_repository(self, run):
            engine = create_async_engine(...)
            yield lambda **options: MyAsyncRepository(engine, **options)
            run(engine.dispose())
    """
