"""Statements that reach the server after their client's connection was cut.

By then the client has reconnected and has resolved the outcome of the write, or has repeated the write.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.faults.calls import CALLS
from tests.support.faults.proxy import Cut
from tests.support.faults.stage import ALL_DRIVERS, ASYNC_DRIVERS, DRIVERS, Stage, staged

LONG, SHORT = 3600.0, 0.1
"""Seconds for which a statement is held: beyond the end of the call, and during outcome resolution."""


@pytest.fixture(scope="module", params=ALL_DRIVERS)
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    driver = (DRIVERS | ASYNC_DRIVERS)[request.param]
    with staged(request.getfixturevalue(driver.server), driver) as stage:
        yield stage


@pytest.mark.parametrize("name", CALLS)
def test_call_is_answered_when_its_statement_arrives_during_outcome_resolution(stage: Stage, name: str) -> None:
    undisturbed = stage.undisturbed(name)
    for message in (undisturbed.write, undisturbed.commit):
        outcome = stage.disturbed(name, Cut("client", message, hold=SHORT))
        assert outcome.cuts == 1
        assert outcome.kind == "answered", (message, outcome.answer)


@pytest.mark.parametrize("name", CALLS)
def test_call_is_answered_when_its_statement_arrives_after_the_answer(stage: Stage, name: str) -> None:
    """Until the statement arrives, the old transaction holds its locks if it has begun."""
    undisturbed = stage.undisturbed(name)
    for message in {undisturbed.write, undisturbed.commit}:
        before = stage.proxy.events.copy()
        outcome = stage.disturbed(name, Cut("client", message, hold=LONG))
        assert outcome.cuts == 1
        assert outcome.kind == "answered", (message, outcome.answer)
        assert sum((stage.proxy.events - before)[end] for end in ("delivered", "undeliverable")) == 1


def test_late_insert_does_not_recreate_a_deleted_session(stage: Stage) -> None:
    """The insert arrives after its retry, and after another client has deleted the session."""
    cut = Cut("client", stage.undisturbed("create").write, hold=LONG)
    session_id, begun = stage.begin(CALLS["create"])
    stage.proxy.arm(cut)
    begun.make()
    assert stage.direct.delete_session(session_id)
    stage.settle()
    assert stage.state(session_id) is None
