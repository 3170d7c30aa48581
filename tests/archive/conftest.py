"""What the tests of archives share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.databases import DATABASES, Storage
from vibeforge_sessions import SessionRepository
from vibeforge_sessions.testing import NewRepository


@pytest.fixture(params=DATABASES)
def new_repository(request: pytest.FixtureRequest) -> Iterator[NewRepository]:
    """A maker of repositories on each database, empty."""
    storage: Storage = request.getfixturevalue(request.param)
    with storage.repositories() as new:
        yield new


@pytest.fixture
def repository(new_repository: NewRepository) -> SessionRepository:
    """An empty repository on each database."""
    return new_repository()
