"""The contract, part seven: an application's own class of session."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum, StrEnum
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from vibeforge_sessions import InvalidSessionError, Session, SessionFilter
from vibeforge_sessions.testing.base import SESSION_ID, NewRepository, assert_same, stored
from vibeforge_sessions.testing.stored_values import nested


class ExtendedPhase(StrEnum):
    """An application's own phases."""

    QUESTIONNAIRE = "QUESTIONNAIRE"
    DEPLOYMENT = "DEPLOYMENT"


class ExtendedSession(Session):
    """An application's own session: narrower phases, more fields."""

    phase: ExtendedPhase = ExtendedPhase.QUESTIONNAIRE  # type: ignore[assignment]
    is_aborted: bool = False
    failure_artifact: dict[str, Any] | None = None


class Owner(BaseModel):
    """What a field may be made of."""

    name: str
    since: date


class TypedSession(Session):
    """A session with fields that JSON does not have."""

    deadline: datetime | None = None
    price: Decimal = Decimal("0.00")
    owners: list[Owner] = Field(default_factory=list)
    area: Path = Path()
    ratio: float | None = None
    budget: Annotated[int, Field(le=100)] = 0


class OddPhase(str, Enum):  # noqa: UP042 (as applications wrote it before StrEnum)
    """Phases that a database must not mix up or trim."""

    QUESTIONNAIRE = "À FAIRE\u00a0!"
    WIDE = "wide\u3000"
    SOFT = "so\u00adft"


class OddSession(Session):
    """A session with these."""

    phase: OddPhase = OddPhase.QUESTIONNAIRE  # type: ignore[assignment]


class UnkeptPhase(StrEnum):
    """Phases that do not fit a column, or that a line could not show."""

    LONG = "x" * 65
    BROKEN = "a\nb"


class UnkeptSession(Session):
    """A session with these."""

    phase: UnkeptPhase = UnkeptPhase.LONG  # type: ignore[assignment]


class PhaseOfAnyText(Session):
    """A session whose phases nobody could list."""

    phase: str = "x"  # type: ignore[assignment]


class FieldOfToDict(Session):
    """A session with a field that to_dict would overwrite."""

    stored: int = 0


class SubclassTests:
    """Fields and phases of an application's own."""

    def test_a_subclass_with_fields_and_phases_of_its_own(self, new_repository: NewRepository) -> None:
        repository = new_repository(session_type=ExtendedSession)
        given = ExtendedSession(session_id=SESSION_ID, failure_artifact={"file": "a.py"})
        given.update_phase(ExtendedPhase.DEPLOYMENT)
        given.add_error("t", "m")
        repository.create_session(given)
        session = stored(repository)
        assert isinstance(session, ExtendedSession)
        assert_same(session, given)
        assert session.phase is ExtendedPhase.DEPLOYMENT
        assert session.error_history[0].phase is ExtendedPhase.DEPLOYMENT
        session.is_aborted = True
        repository.update_session(session)
        assert stored(repository).is_aborted is True  # type: ignore[attr-defined]
        assert repository.append_error(SESSION_ID, "t", "m").phase is ExtendedPhase.DEPLOYMENT
        assert [entry.phase for entry in repository.list_errors(SESSION_ID)] == [ExtendedPhase.DEPLOYMENT] * 2

    def test_an_older_kind_of_string_enum_with_odd_phases(self, new_repository: NewRepository) -> None:
        repository = new_repository(session_type=OddSession)
        for phase in OddPhase:
            repository.create_session(OddSession(session_id=phase.name, phase=phase)).add_error("t", "m")
            entry = repository.append_error(phase.name, "t", "m")
            assert entry.phase is phase
            assert stored(repository, phase.name).phase is phase  # type: ignore[comparison-overlap]
            assert stored(repository, phase.name).error_history == [entry]
            assert repository.list_sessions(SessionFilter(phases=[phase])) == [phase.name]
        with pytest.raises(InvalidSessionError):
            SessionFilter(phases=[str(number) for number in range(1001)])

    def test_a_phase_that_cannot_be_kept(self, new_repository: NewRepository) -> None:
        repository = new_repository(session_type=UnkeptSession)
        for phase in UnkeptPhase:
            with pytest.raises(InvalidSessionError) as caught:
                repository.create_session(UnkeptSession(phase=phase))
            assert caught.value.path == "phase"
        assert repository.list_sessions() == []

    @pytest.mark.parametrize("session_type", [PhaseOfAnyText, FieldOfToDict])
    def test_a_class_that_cannot_be_stored(self, new_repository: NewRepository, session_type: type[Session]) -> None:
        with pytest.raises(InvalidSessionError):
            new_repository(session_type=session_type).list_sessions()

    def test_a_field_of_a_subclass_may_be_as_deep_as_any(self, new_repository: NewRepository) -> None:
        repository = new_repository(session_type=ExtendedSession)
        given = ExtendedSession(session_id=SESSION_ID, failure_artifact={"deep": nested(199)})
        repository.create_session(given)
        assert_same(stored(repository), given)
        given.failure_artifact = {"deep": nested(200)}
        with pytest.raises(InvalidSessionError) as caught:
            repository.update_session(given)
        assert str(caught.value.path).startswith("failure_artifact.deep")

    def test_fields_come_back_as_they_are_typed(self, new_repository: NewRepository) -> None:
        repository = new_repository(session_type=TypedSession)
        given = TypedSession(
            session_id=SESSION_ID,
            deadline=datetime(2026, 1, 2, 3, 4, 5, 678901, UTC),
            price=Decimal("12.50"),
            owners=[Owner(name="Ann", since=date(2026, 1, 2))],
            area=Path("a/b"),
        )
        repository.create_session(given)
        session = stored(repository)
        assert isinstance(session, TypedSession)
        assert_same(session, given)
        assert str(session.price) == "12.50"
        repository.update_session(session)
        assert stored(repository).version == 1  # nothing was changed, whatever the form in which it is kept
        session.owners.append(Owner(name="Bob", since=date(2026, 1, 3)))
        repository.update_session(session)
        assert_same(stored(repository), session)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("budget", 101),
            ("budget", "much"),
            ("deadline", "soon"),
            ("price", object()),
            ("ratio", float("nan")),
            ("owners", [{"name": "Ann"}]),
            ("owners", None),
            ("area", PurePosixPath("a")),  # equal to what would come back, and of another type
        ],
    )
    def test_what_a_field_would_not_take_back_is_refused(
        self, new_repository: NewRepository, name: str, value: Any
    ) -> None:
        repository = new_repository(session_type=TypedSession)
        session = repository.create_session(TypedSession(session_id=SESSION_ID))
        setattr(session, name, value)
        with pytest.raises(InvalidSessionError) as caught:
            repository.update_session(session)
        assert str(caught.value.path).startswith(name)
        assert stored(repository).version == 1

    def test_another_class_of_session_is_refused(self, new_repository: NewRepository) -> None:
        for given, session_type in ((ExtendedSession(), Session), (Session(), ExtendedSession)):
            repository = new_repository(session_type=session_type)
            with pytest.raises(InvalidSessionError, match="session_type"):
                repository.create_session(given)
            with pytest.raises(InvalidSessionError, match="session_type"):
                repository.update_session(given)
