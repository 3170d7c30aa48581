"""Contract tests of session classes that an application defines."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum, StrEnum
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from vibeforge_sessions import ConfigurationError, InvalidArgumentError, InvalidSessionError, Session, SessionFilter
from vibeforge_sessions.testing.base import SESSION_ID, NewRepository, assert_same, stored
from vibeforge_sessions.testing.stored_values import nested


class ExtendedPhase(StrEnum):
    """Phases that an application defines."""

    QUESTIONNAIRE = "QUESTIONNAIRE"
    DEPLOYMENT = "DEPLOYMENT"


class ExtendedSession(Session):
    """Session class with other phases and additional fields."""

    phase: ExtendedPhase = ExtendedPhase.QUESTIONNAIRE  # type: ignore[assignment]
    is_aborted: bool = False
    failure_artifact: dict[str, Any] | None = None


class Owner(BaseModel):
    """Pydantic model as the type of a field."""

    name: str
    since: date


class TypedSession(Session):
    """Session class with fields of types that are not JSON."""

    deadline: datetime | None = None
    price: Decimal = Decimal("0.00")
    owners: list[Owner] = Field(default_factory=list)
    area: Path = Path()
    ratio: float | None = None
    budget: Annotated[int, Field(le=100)] = 0


class Moment(datetime):
    """Subclass of `datetime`."""


class OddPhase(str, Enum):  # noqa: UP042 (the form that applications used before StrEnum)
    """Phases with characters that a collation might ignore or a database might trim."""

    QUESTIONNAIRE = "À FAIRE\u00a0!"
    WIDE = "wide\u3000"
    SOFT = "so\u00adft"


class OddSession(Session):
    """Session class with `OddPhase`."""

    phase: OddPhase = OddPhase.QUESTIONNAIRE  # type: ignore[assignment]


class InvalidPhase(StrEnum):
    """Phases that are too long, or contain control characters."""

    LONG = "x" * 65
    BROKEN = "a\nb"


class SessionOfInvalidPhases(Session):
    """Session class with `InvalidPhase`."""

    phase: InvalidPhase = InvalidPhase.LONG  # type: ignore[assignment]


class PhaseOfAnyText(Session):
    """Session class whose phase is not an enum."""

    phase: str = "x"  # type: ignore[assignment]


class FieldOfToDict(Session):
    """Session class with a field whose name is a key of `to_dict`."""

    stored: int = 0


class SubclassTests:
    """Fields and phases that an application defines."""

    def test_subclass_fields_and_phases_are_stored(self, new_repository: NewRepository) -> None:
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

    def test_str_enum_mixin_with_unusual_phases(self, new_repository: NewRepository) -> None:
        repository = new_repository(session_type=OddSession)
        for phase in OddPhase:
            repository.create_session(OddSession(session_id=phase.name, phase=phase)).add_error("t", "m")
            entry = repository.append_error(phase.name, "t", "m")
            assert entry.phase is phase
            assert stored(repository, phase.name).phase is phase  # type: ignore[comparison-overlap]
            assert stored(repository, phase.name).error_history == [entry]
            assert repository.list_sessions(SessionFilter(phases=[phase])) == [phase.name]
        with pytest.raises(InvalidArgumentError):
            SessionFilter(phases=[str(number) for number in range(1001)])

    def test_invalid_phase_is_rejected(self, new_repository: NewRepository) -> None:
        repository = new_repository(session_type=SessionOfInvalidPhases)
        for phase in InvalidPhase:
            with pytest.raises(InvalidSessionError) as caught:
                repository.create_session(SessionOfInvalidPhases(phase=phase))
            assert caught.value.path == "phase"
        assert repository.list_sessions() == []

    @pytest.mark.parametrize("session_type", [PhaseOfAnyText, FieldOfToDict])
    def test_invalid_session_type_is_rejected(self, new_repository: NewRepository, session_type: type[Session]) -> None:
        with pytest.raises(ConfigurationError) as caught:
            new_repository(session_type=session_type).list_sessions()
        assert caught.value.name == "session_type"

    def test_depth_limit_applies_to_each_subclass_field(self, new_repository: NewRepository) -> None:
        repository = new_repository(session_type=ExtendedSession)
        given = ExtendedSession(session_id=SESSION_ID, failure_artifact={"deep": nested(199)})
        repository.create_session(given)
        assert_same(stored(repository), given)
        given.failure_artifact = {"deep": nested(200)}
        with pytest.raises(InvalidSessionError) as caught:
            repository.update_session(given)
        assert str(caught.value.path).startswith("failure_artifact.deep")

    def test_typed_subclass_fields_are_exact(self, new_repository: NewRepository) -> None:
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
        assert stored(repository).version == 1  # unchanged, although it is stored in another form
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
            ("deadline", Moment(2026, 1, 2, tzinfo=UTC)),  # an equal value of a different type is read back
        ],
        ids=[
            "out_of_range",
            "text_for_integer",
            "text_for_datetime",
            "object",
            "nan",
            "dict_for_model",
            "none_for_list",
            "subclass_of_datetime",
        ],
    )
    def test_value_that_the_field_rejects_is_rejected(
        self, new_repository: NewRepository, name: str, value: Any
    ) -> None:
        repository = new_repository(session_type=TypedSession)
        session = repository.create_session(TypedSession(session_id=SESSION_ID))
        setattr(session, name, value)
        with pytest.raises(InvalidSessionError) as caught:
            repository.update_session(session)
        assert str(caught.value.path).startswith(name)
        assert stored(repository).version == 1

    def test_other_session_class_is_rejected(self, new_repository: NewRepository) -> None:
        for given, session_type in ((ExtendedSession(), Session), (Session(), ExtendedSession)):
            repository = new_repository(session_type=session_type)
            with pytest.raises(InvalidArgumentError, match="session_type"):
                repository.create_session(given)
            with pytest.raises(InvalidArgumentError, match="session_type"):
                repository.update_session(given)
