"""PgBouncer between client and server: statements of a lost client connection cannot be canceled from another one.

Appends are therefore transactions there, and take effect only with their COMMIT. The other statements are harmless when
they arrive late.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.databases import Storage
from tests.support.faults.calls import CALLS
from tests.support.faults.proxy import Cut
from tests.support.faults.stage import DRIVERS, Outcome, Stage, outcome_of, staged
from tests.support.servers import AvailableServer, PgBouncer
from tests.support.servers.fixtures import skipping
from tests.support.servers.machine import wait_for

LONG, SHORT = 3600.0, 0.1
NAMES = ("create", "update of the row", "update with entries", "append_error", "append_log", "delete")
Pooled = tuple[Stage, PgBouncer]


@pytest.fixture(params=[True])
def pooled(postgresql_server: AvailableServer, postgresql: Storage, request: pytest.FixtureRequest) -> Iterator[Pooled]:
    """Yield a stage behind a pooler; the parameter states whether the engine knows of the pooler."""
    with (
        skipping(),
        PgBouncer(postgresql_server.url, accepts_options=not request.param) as bouncer,
        staged(postgresql, DRIVERS["psycopg"], through=bouncer.url_of, pgbouncer=request.param) as stage,
    ):
        yield stage, bouncer


def cut_off(pooled: Pooled, name: str, cut: Cut) -> Outcome:
    """Make a call and cut its connection; compare the database once the pooler and the server are idle."""
    stage, bouncer = pooled
    expected = stage.undisturbed(name)
    session_id, begun = stage.begin(CALLS[name])
    stage.proxy.arm(cut)
    kind, answer = outcome_of(begun)
    assert not stage.proxy.pending_cuts
    stage.proxy.heal()
    stage.disconnect()
    bouncer.shut_down()
    wait_for(lambda: stage.connections() == 1, 30, "the pooler's connections to end")
    return stage.verified(expected, Outcome(kind, answer, session_id, begun, 1))


@pytest.mark.parametrize("name", NAMES)
def test_committed_call_is_answered_when_its_connection_is_cut(pooled: Pooled, name: str) -> None:
    outcome = cut_off(pooled, name, pooled[0].undisturbed(name).after_commit())
    assert outcome.kind == "answered", outcome.answer


@pytest.mark.parametrize("hold", [None, SHORT, LONG], ids=["lost", "late", "very late"])
@pytest.mark.parametrize("name", NAMES)
def test_call_is_answered_when_its_first_statement_is_lost_or_late(
    pooled: Pooled, name: str, hold: float | None
) -> None:
    outcome = cut_off(pooled, name, Cut("client", pooled[0].undisturbed(name).write, hold=hold))
    assert outcome.kind == "answered", outcome.answer


@pytest.mark.parametrize("hold", [None, SHORT], ids=["lost", "late"])
@pytest.mark.parametrize("name", NAMES)
def test_call_is_answered_when_its_commit_is_lost_or_late(pooled: Pooled, name: str, hold: float | None) -> None:
    outcome = cut_off(pooled, name, Cut("client", pooled[0].undisturbed(name).commit, hold=hold))
    assert outcome.kind == "answered", outcome.answer


@pytest.mark.parametrize("pooled", [False], indirect=True)
@pytest.mark.parametrize("name", ["append_error", "append_log"])
def test_append_through_an_unknown_pooler_is_reported_as_unknown_and_not_repeated(pooled: Pooled, name: str) -> None:
    outcome = cut_off(pooled, name, Cut("client", pooled[0].undisturbed(name).write, hold=LONG))
    assert outcome.kind == "unknown", outcome.answer
