"""A statement that is still on its way when its client is cut off reaches the server afterwards.

The client has come back by then and has asked what has become of it, or has even done it again.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.faults.calls import CALLS
from tests.support.faults.proxy import Cut
from tests.support.faults.stage import ASYNC_WAYS, EVERY_WAY, WAYS, Stage, staged

LONG, SHORT = 3600.0, 0.1
"""Until the call has ended; and while it asks what has become of it."""


@pytest.fixture(scope="module", params=EVERY_WAY)
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    way = (WAYS | ASYNC_WAYS)[request.param]
    with staged(request.getfixturevalue(way.server), way) as stage:
        yield stage


@pytest.mark.parametrize("name", CALLS)
def test_statements_that_come_while_it_is_found_out(stage: Stage, name: str) -> None:
    undisturbed = stage.undisturbed(name)
    for message in (undisturbed.write, undisturbed.commit):
        outcome = stage.disturbed(name, Cut("client", message, hold=SHORT))
        assert outcome.cuts == 1
        assert outcome.kind == "answered", (message, outcome.answer)


@pytest.mark.parametrize("name", CALLS)
def test_statements_that_come_after_the_answer(stage: Stage, name: str) -> None:
    """Until then the old transaction holds its locks, if it has begun."""
    undisturbed = stage.undisturbed(name)
    for message in {undisturbed.write, undisturbed.commit}:
        before = stage.proxy.happened.copy()
        outcome = stage.disturbed(name, Cut("client", message, hold=LONG))
        assert outcome.cuts == 1
        assert outcome.kind == "answered", (message, outcome.answer)
        assert sum((stage.proxy.happened - before)[end] for end in ("delivered", "undeliverable")) == 1


def test_what_was_created_and_deleted_stays_away(stage: Stage) -> None:
    """The insert comes last: after it was done again, and after the session was deleted by somebody who saw it."""
    cut = Cut("client", stage.undisturbed("create").write, hold=LONG)
    session_id, begun = stage.begin(CALLS["create"])
    stage.proxy.arm(cut)
    begun.make()
    assert stage.direct.delete_session(session_id)
    stage.settle()
    assert stage.state(session_id) is None
