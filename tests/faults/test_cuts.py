"""Connections cut at every boundary of the protocol: the caller gets its answer, and what it wrote is there once.

No call fails here: after each cut the server can be reached again, and all that was cut off ends before it is looked.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.faults.calls import CALLS
from tests.faults.proxy import Cut
from tests.faults.stage import WAYS, Stage, Undisturbed, staged


@pytest.fixture(params=WAYS)
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    way = WAYS[request.param]
    with staged(request.getfixturevalue(way.server), way) as stage:
        yield stage


def boundaries(undisturbed: Undisturbed) -> Iterator[Cut]:
    """Return a cut before each message and one after it, on either side, by turns with RST and with FIN."""
    for side in ("client", "server"):
        for message in range(1, undisturbed.count(side) + 1):
            for forwarded in (False, True):
                yield Cut(side, message, forwarded=forwarded, how="reset" if message % 2 == forwarded else "close")


def check(stage: Stage, name: str, cuts: list[tuple[Cut, ...]]) -> None:
    """Assert that the call answers in spite of each of the cuts."""
    failures = []
    for each in cuts:
        try:
            outcome = stage.disturbed(name, *each)
            assert stage.proxy.to_come == 0, "it was not cut"
            assert outcome.kind == "answered", f"{type(outcome.answer).__name__}: {outcome.answer}"
        except AssertionError as error:
            failures.append(f"{each}: {error}")
    assert not failures, f"{len(failures)} of {len(cuts)}:\n" + "\n".join(failures)


@pytest.mark.parametrize("name", CALLS)
def test_at_every_message(stage: Stage, name: str) -> None:
    check(stage, name, [(cut,) for cut in boundaries(stage.undisturbed(name))])
