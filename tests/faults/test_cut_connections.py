"""Connections cut at every protocol message: the call is answered, and its write is stored exactly once.

No call fails in these tests: the server can be reached again after each cut, and every cut connection ends before the
database is inspected.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

import pytest

from tests.support import cases
from tests.support.faults.calls import CALLS
from tests.support.faults.framing import Side
from tests.support.faults.proxy import Cut, Seen
from tests.support.faults.stage import ASYNC_DRIVERS, DRIVERS, Stage, staged

SIDES: tuple[Side, Side] = ("client", "server")
OFFSETS = 6
AGAIN = 8
CALLS_ON_A_LOOP = cases(
    ["update with entries", "create with histories", "append_error", "delete"], ("update with entries",)
)


@pytest.fixture(scope="module", params=cases(DRIVERS, ("psycopg", "pymysql")))
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    driver = DRIVERS[request.param]
    with staged(request.getfixturevalue(driver.server), driver) as stage:
        yield stage


@pytest.fixture(scope="module", params=ASYNC_DRIVERS)
def async_stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    driver = ASYNC_DRIVERS[request.param]
    with staged(request.getfixturevalue(driver.server), driver) as stage:
        yield stage


def boundaries(messages: Iterable[Seen]) -> list[Cut]:
    """Return a cut before and after each message of both sides, alternating between RST and FIN."""
    cuts = []
    for side in SIDES:
        for message in range(1, sum(seen.side == side for seen in messages) + 1):
            for forwarded in (False, True):
                how = "reset" if message % 2 == forwarded else "close"
                cuts.append(Cut(side, message, forwarded=forwarded, how=how))  # type: ignore[arg-type]
    return cuts


def offsets(messages: Iterable[Seen], chance: random.Random, number: int) -> list[Cut]:
    """Return cuts after random numbers of bytes, alternating between the client's and the server's bytes."""
    sizes = {side: sum(seen.size for seen in messages if seen.side == side) for side in SIDES}
    return [
        Cut(side, byte=chance.randrange(sizes[side]), how=chance.choice(("reset", "close")))
        for _ in range(number // 2)
        for side in SIDES
    ]


def check(stage: Stage, name: str, cuts: Iterable[tuple[Cut, ...]]) -> None:
    """Assert that the call is answered in spite of each series of cuts."""
    failures, number = [], 0
    for each in cuts:
        number += 1
        where = ", ".join(map(str, each))
        try:
            outcome = stage.disturbed(name, *each)
        except AssertionError as error:
            failures.append(f"{where}: {error}")
            continue
        if outcome.kind != "answered":
            failures.append(f"{where}: {type(outcome.answer).__name__}: {outcome.answer}")
        elif outcome.cuts < min(2, len(each)):  # after a second cut at the very end there is no message for a third
            failures.append(f"{where}: the cut was not made")
    assert number, "no cut was made"
    if failures:
        pytest.fail(f"{len(failures)} of {number}:\n" + "\n".join(failures), pytrace=False)


@pytest.mark.parametrize("name", CALLS)
def test_call_is_answered_when_its_connection_is_cut(stage: Stage, name: str) -> None:
    chance = random.Random(name)
    undisturbed = stage.undisturbed(name)
    cuts = [
        undisturbed.before_commit(),
        undisturbed.after_commit(),
        *chance.sample(boundaries(undisturbed.messages), 4),
        *offsets(undisturbed.messages, chance, 2),
    ]
    check(stage, name, [(cut,) for cut in cuts])


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", CALLS)
def test_call_is_answered_when_cut_at_every_message_and_at_random_bytes(stage: Stage, name: str) -> None:
    messages = stage.undisturbed(name).messages
    cuts = [*boundaries(messages), *offsets(messages, random.Random(name), OFFSETS)]
    check(stage, name, [(cut,) for cut in cuts])


def cut_again(stage: Stage, name: str, chance: random.Random, number: int) -> Iterator[tuple[Cut, ...]]:
    """Return series of two or three cuts: the first around the commit, the others in the messages after it.

    The messages after the first cut open another connection and resolve the outcome of the call.
    """
    undisturbed = stage.undisturbed(name)
    for first in (undisturbed.before_commit(), undisturbed.after_commit()):
        stage.disturbed(name, first)
        after = list(stage.proxy.messages[first.message + 1 :])
        connections = {seen.connection for seen in after}
        after = [seen for seen in after if seen.connection == max(connections)]
        choice = [*boundaries(after), *offsets(after, chance, number)]
        for _ in range(number // 2):
            yield first, *chance.sample(choice, 1)
        for _ in range(number // 2):
            yield first, *chance.sample(choice, 2)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", CALLS)
def test_call_is_answered_when_outcome_resolution_is_cut_again(stage: Stage, name: str) -> None:
    check(stage, name, cut_again(stage, name, random.Random(name), AGAIN))


@pytest.mark.parametrize("name", CALLS_ON_A_LOOP)
def test_call_on_an_event_loop_is_answered_when_its_connection_is_cut(async_stage: Stage, name: str) -> None:
    chance = random.Random(name)
    undisturbed = async_stage.undisturbed(name)
    cuts = [
        undisturbed.before_commit(),
        undisturbed.after_commit(),
        *chance.choices(boundaries(undisturbed.messages), k=2 * AGAIN),
        *offsets(undisturbed.messages, chance, OFFSETS),
    ]
    check(async_stage, name, [(cut,) for cut in cuts])
    check(async_stage, name, cut_again(async_stage, name, chance, AGAIN // 2))
