"""A statement that is still on its way when its client is cut off reaches the server afterwards.

The client has come back by then and has asked what has become of it, or has even done it again.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.calls import CALLS
from tests.faults.proxy import Cut
from tests.faults.stage import ASYNC_WAYS, WAYS, Stage, staged
from vibeforge_sessions import RetryPolicy

LONG, SHORT = 3600.0, 0.2
"""Until the call has ended; and while it asks what has become of it."""
PATIENT = RetryPolicy(deadline=10, first_delay=0.001)


@pytest.fixture(scope="module", params=[*WAYS, *ASYNC_WAYS])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    way = (WAYS | ASYNC_WAYS)[request.param]
    with staged(request.getfixturevalue(way.server), way, retry=PATIENT) as stage:
        yield stage


@pytest.mark.parametrize("hold", [SHORT, LONG], ids=["comes soon", "comes afterwards"])
@pytest.mark.parametrize("name", CALLS)
def test_a_call_whose_statements_come_late(stage: Stage, name: str, hold: float) -> None:
    """Nothing of the call has reached the server, or all but the commit."""
    undisturbed = stage.undisturbed(name)
    for message in (1, undisturbed.commit):
        outcome = stage.disturbed(name, Cut("client", message, hold=hold))
        assert outcome.cuts == 1
        assert outcome.kind == "answered", (message, outcome.answer)
        assert stage.proxy.happened["delivered"] + stage.proxy.happened["undeliverable"] > 0
