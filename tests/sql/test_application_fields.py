"""Fields that an application adds to sessions, removes or restricts without a migration."""

from __future__ import annotations

import asyncio
import traceback
from typing import Annotated, Literal

import pytest
from pydantic import Field, field_validator
from sqlalchemy import Engine

from vibeforge_sessions import (
    AsyncSQLAlchemySessionRepository,
    CorruptSessionError,
    InvalidSessionError,
    Session,
    SQLAlchemySessionRepository,
)
from vibeforge_sessions.testing.base import SESSION_ID, assert_same, stored
from vibeforge_sessions.testing.updates import round_tripped

SECRET = "s3cret"


class Older(Session):
    budget: int = 0


class Newer(Older):
    owners: list[str] = []  # noqa: RUF012 (pydantic copies it)
    mood: str = "calm"


class Stricter(Session):
    budget: Annotated[int, Field(ge=100)] = 100
    mood: Literal["calm", "angry"] = "calm"


class Validating(Session):
    mood: str = "calm"

    @field_validator("mood")
    @classmethod
    def _check(cls, mood: str) -> str:
        if mood == SECRET:
            raise ValueError(f"no such mood: {mood}")
        return mood


@pytest.mark.parametrize("older", [Older, Session])
@pytest.mark.parametrize("serialized", [False, True], ids=["object", "round trip"])
def test_update_by_older_class_keeps_unknown_fields(engine: Engine, older: type[Session], serialized: bool) -> None:
    new = SQLAlchemySessionRepository(engine, session_type=Newer)
    old = SQLAlchemySessionRepository(engine, session_type=older)
    new.create_session(Newer(session_id=SESSION_ID, budget=7, owners=["ann", "bob"]))
    session = round_tripped(stored(old)) if serialized else stored(old)
    session.add_answer("q", 1)
    if isinstance(session, Older):
        session.budget = 8
    old.update_session(session)
    after = stored(new)
    assert (after.budget, after.owners, after.answers) == (8 if older is Older else 7, ["ann", "bob"], {"q": 1})
    assert_same(stored(old), session)


def test_new_field_has_its_default_in_old_sessions(engine: Engine) -> None:
    SQLAlchemySessionRepository(engine).create_session(session_id=SESSION_ID)
    new = SQLAlchemySessionRepository(engine, session_type=Newer)
    session = new.modify_session(SESSION_ID, lambda session: session.owners.append("ann"))
    assert (session.budget, stored(new).owners) == (0, ["ann"])


@pytest.mark.parametrize("session_type", [Stricter, Validating])
def test_field_that_became_invalid_makes_only_its_session_unreadable(
    engine: Engine, session_type: type[Session]
) -> None:
    old = SQLAlchemySessionRepository(engine, session_type=Newer)
    old.create_session(Newer(session_id="good", budget=100))
    old.create_session(Newer(session_id="bad", budget=100, mood=SECRET))
    new = SQLAlchemySessionRepository(engine, session_type=session_type)
    assert new.list_sessions() == ["good", "bad"]
    assert [item.session_id for item in new.find_sessions().items] == ["bad", "good"]
    assert stored(new, "good").mood == "calm"  # type: ignore[attr-defined]
    with pytest.raises(CorruptSessionError, match="mood") as caught:
        new.get_session("bad")
    assert caught.value.session_id == "bad"
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert new.append_error("bad", "t", "m").position == 1
    assert new.list_logs("bad") == []
    assert stored(old, "bad").mood == SECRET  # the failed read changed nothing
    assert new.delete_session("bad")


def test_update_with_invalid_field_raises_error_that_names_it(engine: Engine) -> None:
    repository = SQLAlchemySessionRepository(engine, session_type=Newer)
    session = repository.create_session(session_id=SESSION_ID)
    session.owners = {SECRET}  # type: ignore[assignment]
    with pytest.raises(InvalidSessionError) as caught:
        repository.update_session(session)
    assert caught.value.path == "owners"
    assert SECRET not in str(caught.value)
    assert stored(repository).owners == []


def test_error_does_not_show_message_of_validator() -> None:
    with pytest.raises(InvalidSessionError) as caught:
        Validating.from_dict({"session_id": SESSION_ID, "mood": SECRET})
    assert caught.value.path == "mood"
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_async_repository_returns_sessions_of_its_session_type(engine: Engine) -> None:
    async def work() -> Newer | None:
        async with AsyncSQLAlchemySessionRepository(engine, session_type=Newer) as repository:
            session = await repository.create_session(Newer(session_id=SESSION_ID, owners=["ann"]))
            session.budget = 7
            await repository.update_session(session)
            return await repository.get_session(SESSION_ID)

    session = asyncio.run(work())
    assert session is not None
    assert (type(session), session.budget, session.owners) == (Newer, 7, ["ann"])
