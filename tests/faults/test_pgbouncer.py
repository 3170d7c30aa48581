"""PgBouncer between client and server: what a client's connection has sent cannot be ended through another one.

So an append is a transaction there, of which nothing counts before its COMMIT; the other statements do no harm when
they come late.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.databases import Storage
from tests.support.faults.calls import CALLS
from tests.support.faults.proxy import Cut
from tests.support.faults.stage import WAYS, Outcome, Stage, made, staged
from tests.support.servers import AvailableServer, PgBouncer
from tests.support.servers.fixtures import skipping
from tests.support.servers.machine import wait_for

LONG, SHORT = 3600.0, 0.1
NAMES = ("create", "update of the row", "update with entries", "append_error", "append_log", "delete")
Pooled = tuple[Stage, PgBouncer]


@pytest.fixture
def pooled(postgresql_server: AvailableServer, postgresql: Storage) -> Iterator[Pooled]:
    with (
        skipping(),
        PgBouncer(postgresql_server.url) as bouncer,
        staged(postgresql, WAYS["psycopg"], through=bouncer.url_of, pgbouncer=True) as stage,
    ):
        yield stage, bouncer


def cut_off(pooled: Pooled, name: str, cut: Cut) -> Outcome:
    """Make a call and cut its connection; look once nothing is left in the server, nor in the pooler."""
    stage, bouncer = pooled
    expected = stage.undisturbed(name)
    session_id, begun = stage.begin(CALLS[name])
    stage.proxy.arm(cut)
    kind, answer = made(begun)
    assert not stage.proxy.to_come
    stage.proxy.heal()
    stage.disconnect()
    bouncer.shut_down()
    wait_for(lambda: stage.connections() == 1, 30, "the pooler's connections to end")
    return stage.judged(expected, Outcome(kind, answer, session_id, begun, 1))


@pytest.mark.parametrize("name", NAMES)
def test_a_call_that_was_done(pooled: Pooled, name: str) -> None:
    outcome = cut_off(pooled, name, pooled[0].undisturbed(name).once_committed())
    assert outcome.kind == "answered", outcome.answer


@pytest.mark.parametrize("hold", [None, SHORT, LONG], ids=["lost", "late", "very late"])
@pytest.mark.parametrize("name", NAMES)
def test_a_call_that_was_on_its_way(pooled: Pooled, name: str, hold: float | None) -> None:
    outcome = cut_off(pooled, name, Cut("client", pooled[0].undisturbed(name).write, hold=hold))
    assert outcome.kind == "answered", outcome.answer


@pytest.mark.parametrize("hold", [None, SHORT], ids=["lost", "late"])
@pytest.mark.parametrize("name", NAMES)
def test_a_commit_that_was_on_its_way(pooled: Pooled, name: str, hold: float | None) -> None:
    outcome = cut_off(pooled, name, Cut("client", pooled[0].undisturbed(name).commit, hold=hold))
    assert outcome.kind == "answered", outcome.answer
