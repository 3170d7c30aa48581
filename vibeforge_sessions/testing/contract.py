"""Contract classes: `SessionRepositoryContract` and `AsyncSessionRepositoryContract`."""

from __future__ import annotations

from vibeforge_sessions.testing.aio import AsyncTests
from vibeforge_sessions.testing.base import RepositoryTests
from vibeforge_sessions.testing.diagnostics import DiagnosticTests
from vibeforge_sessions.testing.histories import HistoryTests
from vibeforge_sessions.testing.holds import HoldAndRestoreTests
from vibeforge_sessions.testing.listings import ListingTests
from vibeforge_sessions.testing.observation import InstrumentationTests
from vibeforge_sessions.testing.partial_dicts import PartialDictTests
from vibeforge_sessions.testing.sessions import SessionTests
from vibeforge_sessions.testing.stored_values import StoredValueTests
from vibeforge_sessions.testing.subclasses import SubclassTests
from vibeforge_sessions.testing.threads import ThreadTests
from vibeforge_sessions.testing.updates import UpdateTests

__all__ = ["AsyncSessionRepositoryContract", "SessionRepositoryContract"]


class SessionRepositoryContract(
    SessionTests,
    UpdateTests,
    PartialDictTests,
    HistoryTests,
    DiagnosticTests,
    SubclassTests,
    HoldAndRestoreTests,
    ListingTests,
    InstrumentationTests,
    StoredValueTests,
    ThreadTests,
    RepositoryTests,
):
    """Complete contract of a `SessionRepository`. A subclass defines the fixture ``new_repository``."""


class AsyncSessionRepositoryContract(AsyncTests, SessionRepositoryContract):
    """Complete contract of an `AsyncSessionRepository`. A subclass defines the fixture ``new_async_repository``.

    The function that the fixture returns is called within an event loop of the test. The repositories that it creates
    are closed on this loop at the end of the test. The fixture ``run`` runs a coroutine on the same loop, for other
    setup and cleanup:

        @pytest.fixture
        def new_async_repository(self, run):
            engine = create_async_engine(...)
            yield lambda **options: MyAsyncRepository(engine, **options)
            run(engine.dispose())
    """
