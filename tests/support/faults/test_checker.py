"""The checker is neither blind nor seeing ghosts: histories written by hand, simulated, and against every order."""

from __future__ import annotations

import copy
import dataclasses
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.faults import checker, history
from tests.support.faults.checker import check
from tests.support.faults.history import Crash, Journal, Operation, Outcome
from tests.support.faults.simulation import ID, Simulation, Store
from vibeforge_sessions import OutcomeUnknownError, SessionNotFoundError, StaleSessionError, StorageError

# -- by hand


def call(
    name: str, began: int, ended: int | None, answer: Any = None, outcome: Outcome = Outcome.DONE, **asked: Any
) -> Operation:
    if ended is None:
        outcome = Outcome.UNKNOWN
    return Operation("c", name, ID, began, ended, outcome, asked, answer)


def create(began: int, ended: int | None, token: str = "c", outcome: Outcome = Outcome.DONE) -> Operation:
    return call("create_session", began, ended, None, outcome, hot=token, documents=token, errors=[], logs=[])


def update(
    began: int,
    ended: int | None,
    token: str,
    base: list[Any],
    answer: Any = None,
    outcome: Outcome = Outcome.DONE,
    errors: Sequence[str] = (),
) -> Operation:
    if outcome is Outcome.DONE and ended is not None:
        answer = {"version": answer, "positions": list(range(1, len(errors) + 1))}
    asked = {"base": base, "hot": token, "documents": token, "errors": list(errors), "logs": []}
    return call("update_session", began, ended, answer, outcome, **asked)


def append(began: int, ended: int | None, token: str, position: int | None = None) -> Operation:
    return call("append_error", began, ended, position, token=token)


def log(began: int, ended: int | None, token: str) -> Operation:
    return call("append_log", began, ended, token=token)


def delete(began: int, ended: int | None, answer: bool | None = True) -> Operation:
    return call("delete_session", began, ended, answer)


def read(began: int, ended: int, base: list[Any] | None, *errors: str, logs: Iterable[str] = ()) -> Operation:
    if base is None:
        return call("get_session", began, ended, None)
    answer = {
        "base": base,
        "errors": [list(each) for each in enumerate(errors, 1)],
        "logs": [list(each) for each in enumerate(logs, 1)],
        "omitted_errors": 0,
        "omitted_logs": 0,
    }
    return call("get_session", began, ended, answer)


FIRST = [1, "c", "c"]
SECOND = [2, "u", "u"]
LINEARIZABLE = {
    "nothing": [],
    "one after another": [create(1, 2), append(3, 4, "a", 1), update(5, 6, "u", FIRST, 2), read(7, 8, SECOND, "a")],
    "what overlaps comes in either order": [create(1, 2), append(3, 9, "a", 2), append(4, 8, "b", 1)],
    "a read sees what is not acknowledged yet": [create(1, 2), append(3, 9, "a", 1), read(4, 5, FIRST, "a")],
    "a read does not see what is not acknowledged yet": [create(1, 2), append(3, 9, "a", 1), read(4, 5, FIRST)],
    "unknown, and done": [create(1, 2), append(3, None, "a"), read(4, 5, FIRST, "a")],
    "unknown, and done later": [create(1, 2), append(3, None, "a"), read(4, 5, FIRST), read(6, 7, FIRST, "a")],
    "unknown, and never done": [create(1, 2), append(3, None, "a"), append(4, 5, "b", 1), read(6, 7, FIRST, "b")],
    "unknown, and seen by its position only": [create(1, 2), append(3, None, "a"), append(4, 5, "b", 2)],
    "unknown, and deleted before anyone saw it": [create(1, 2), append(3, None, "a"), delete(4, 5), read(6, 7, None)],
    "an unknown create": [create(1, None), append(2, 3, "a", 1), read(4, 5, FIRST, "a")],
    "an unknown delete": [create(1, 2), delete(3, None, None), read(4, 5, FIRST), create(6, 7, "d")],
    "an unknown update": [
        create(1, 2),
        update(3, None, "u", FIRST),
        update(4, 5, "v", FIRST, 2, Outcome.STALE),
        read(6, 7, SECOND),
    ],
    "refused": [
        call("append_error", 0, 1, None, Outcome.NOT_FOUND, token="a"),
        create(1, 2),
        create(3, 4, "d", Outcome.EXISTS),
        update(3, 4, "u", [1, "x", "x"], 1, Outcome.STALE),
    ],
    "not done": [
        create(1, 2),
        call("append_error", 3, 4, None, Outcome.NOT_DONE, token="a"),
        append(5, 6, "b", 1),
        read(7, 8, FIRST, "b"),
    ],
    "two lives": [create(1, 2), append(3, 4, "a", 1), delete(5, 6), create(7, 8, "d"), read(9, 10, [1, "d", "d"])],
}


@pytest.mark.parametrize("name", LINEARIZABLE)
def test_nothing_is_wrong_with(name: str) -> None:
    assert check(LINEARIZABLE[name]) == []


VIOLATIONS = {
    "an acknowledged append is lost": [create(1, 2), append(3, 4, "a", 1), read(5, 6, FIRST)],
    "an acknowledged log is lost": [create(1, 2), log(3, 4, "a"), read(5, 6, FIRST)],
    "an acknowledged update is lost": [create(1, 2), update(3, 4, "u", FIRST, 2), read(5, 6, FIRST)],
    "an acknowledged create is lost": [create(1, 2), read(3, 4, None)],
    "an acknowledged delete is undone": [create(1, 2), delete(3, 4), read(5, 6, FIRST)],
    "an append is there twice": [create(1, 2), append(3, 4, "a", 1), read(5, 6, FIRST, "a", "a")],
    "a log is there twice": [create(1, 2), log(3, 4, "a"), read(5, 6, FIRST, logs=["a", "a"])],
    "an append comes twice, and is seen once": [create(1, 2), append(3, 4, "a", 1), append(5, 6, "b", 3)],
    "a delete comes twice": [create(1, 2), delete(3, 4), create(5, 6, "d"), read(7, 8, None)],
    "two deletes of one life": [create(1, 2), delete(3, 4), delete(5, 6)],
    "two updates of one version": [create(1, 2), update(3, 9, "u", FIRST, 2), update(4, 8, "v", FIRST, 3)],
    "an update of an old version": [
        create(1, 2),
        update(3, 4, "u", FIRST, 2),
        update(5, 6, "v", FIRST, 3),
        read(7, 8, [3, "v", "v"]),
    ],
    "an update of another life": [create(1, 2), delete(3, 4), create(5, 6, "d"), update(7, 8, "u", FIRST, 2)],
    "a version is left out": [create(1, 2), update(3, 4, "u", FIRST, 3)],
    "an old state is read": [create(1, 2), append(3, 4, "a", 1), read(5, 6, FIRST), read(7, 8, FIRST, "a")],
    "what comes is read before it was asked for": [create(1, 2), read(3, 4, FIRST, "a"), append(5, 6, "a", 1)],
    "what was read is gone": [create(1, 2), append(3, 9, "a", 1), read(4, 5, FIRST, "a"), read(6, 7, FIRST)],
    "two moments in one read": [create(1, 2), update(3, 4, "u", FIRST, 2), read(5, 6, [2, "u", "c"])],
    "the history of another moment": [
        create(1, 2),
        update(3, 4, "u", FIRST, 2, errors=["a"]),
        read(5, 6, SECOND),
        read(7, 8, SECOND, "a"),
    ],
    "a position twice": [create(1, 2), append(3, 4, "a", 1), append(5, 6, "b", 1)],
    "a position is left out": [create(1, 2), append(3, 4, "a", 2)],
    "a position other than where it is": [
        create(1, 2),
        append(3, 9, "a", 2),
        append(4, 8, "b", 1),
        read(10, 11, FIRST, "a", "b"),
    ],
    "an order that changes": [
        create(1, 2),
        log(3, 9, "a"),
        log(4, 8, "b"),
        read(10, 11, FIRST, logs="ab"),
        read(12, 13, FIRST, logs="ba"),
    ],
    "the history of an old life": [
        create(1, 2),
        append(3, 4, "a", 1),
        delete(5, 6),
        create(7, 8, "d"),
        read(9, 10, [1, "d", "d"], "a"),
    ],
    "said not to be done, and is": [
        create(1, 2),
        call("append_error", 3, 4, None, Outcome.NOT_DONE, token="a"),
        read(5, 6, FIRST, "a"),
    ],
    "said to be stale, and stored": [create(1, 2), update(3, 4, "u", FIRST, 2, Outcome.STALE), read(5, 6, SECOND)],
    "said to be stale, and is not": [create(1, 2), update(3, 4, "u", FIRST, 1, Outcome.STALE)],
    "said to exist, and does not": [create(1, 2, outcome=Outcome.EXISTS)],
    "said not to be found, and is": [create(1, 2), call("append_error", 3, 4, None, Outcome.NOT_FOUND, token="a")],
    "unknown, and there twice": [create(1, 2), append(3, None, "a"), read(4, 5, FIRST, "a", "a")],
    "unknown, and before it was asked for": [create(1, 2), read(3, 4, FIRST, "a"), append(5, None, "a")],
    "an unexpected error": [create(1, 2, outcome=Outcome.UNEXPECTED)],
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_something_is_wrong_where(name: str) -> None:
    (violation,) = check(VIOLATIONS[name])
    assert violation.session_id == ID


def test_what_a_crash_takes_back_may_have_been_read_but_not_acknowledged() -> None:
    crash = Crash(killed=10, restarted=20)
    before = [create(1, 2), append(3, 30, "a", 1)]
    glimpse, after = read(5, 6, FIRST, "a"), read(22, 23, FIRST)
    late_answer = read(9, 15, FIRST, "a")
    for seen in (glimpse, late_answer):
        assert check([*before, seen, after])
        assert not check([*before, seen, after], glimpses=[crash])
    assert check([*before, read(22, 23, FIRST, "a"), read(24, 25, FIRST)], glimpses=[crash])
    assert check([create(1, 2), append(3, 4, "a", 1), after], glimpses=[crash])
    assert check([create(1, 2), append(3, 4, "a", 1), append(7, 30, "b", 2), read(5, 6, FIRST)], glimpses=[crash])


def test_it_says_where_it_ends() -> None:
    (violation,) = check(VIOLATIONS["said not to be done, and is"])
    assert "1 of 2 answered calls" in str(violation)
    assert "said not to be done, and seen: [0.000, 0.000] c: append_error(token=a)" in str(violation)
    (violation,) = check(VIOLATIONS["a log is there twice"])
    assert "log a at [1, 2]" in str(violation)


def test_a_search_without_end_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checker, "MOST_STEPS", 3)
    (violation,) = check(LINEARIZABLE["two lives"])
    assert "no order was found in 3 steps" in str(violation)


# -- simulated


@pytest.mark.parametrize("failing", [0.0, 0.05, 0.1, 0.15])
@pytest.mark.parametrize("seed", range(10))
def test_what_is_done_one_after_another_is_linearizable(seed: int, failing: float) -> None:
    operations = Simulation(seed, Store(), failing=failing).run(300)
    assert "\n".join(map(str, check(operations))) == ""


class LosesAWrite(Store):
    def append_error(self, asked: dict[str, Any], session: dict[str, Any]) -> tuple[Outcome, Any]:
        if len(session["errors"]) > 30 and not self.wrong:
            self.wrong += 1
            return Outcome.DONE, len(session["errors"]) + 1
        return super().append_error(asked, session)


class AppendsTwice(Store):
    def append_log(self, asked: dict[str, Any], session: dict[str, Any]) -> tuple[Outcome, Any]:
        if len(session["logs"]) > 20 and not self.wrong:
            self.wrong += 1
            super().append_log(asked, session)
        return super().append_log(asked, session)


class LooksAtNoVersion(Store):
    def update_session(self, asked: dict[str, Any], session: dict[str, Any]) -> tuple[Outcome, Any]:
        self.wrong += session["base"] != asked["base"]
        return self.store(asked, session)


class LooksAtTheVersionOnly(Store):
    """Without the write id, another life's update is taken for the session's own."""

    def update_session(self, asked: dict[str, Any], session: dict[str, Any]) -> tuple[Outcome, Any]:
        if session["base"][0] != asked["base"][0]:
            return super().update_session(asked, session)
        self.wrong += session["base"] != asked["base"]
        return self.store(asked, session)


class ReadsWhatWas(Store):
    """Each tenth read is of the moment before the last six appends."""

    def __init__(self) -> None:
        super().__init__()
        self._reads = 0
        self._before: deque[Any] = deque(maxlen=6)

    def append_error(self, asked: dict[str, Any], session: dict[str, Any]) -> tuple[Outcome, Any]:
        self._before.append(copy.deepcopy(session))
        return super().append_error(asked, session)

    def get(self, recent: int | None) -> dict[str, Any] | None:
        self._reads += 1
        if self._reads % 10 or len(self._before) < 6:
            return super().get(recent)
        self.wrong += 1
        now, self.session = self.session, self._before[0]
        found = super().get(recent)
        self.session = now
        return found


class TakesPositionsFromARead(Store):
    """Each append tells the position that was the next one some time before."""

    def __init__(self) -> None:
        super().__init__()
        self._read = 0

    def append_error(self, asked: dict[str, Any], session: dict[str, Any]) -> tuple[Outcome, Any]:
        told, self._read = self._read + 1, len(session["errors"])
        outcome, position = super().append_error(asked, session)
        self.wrong += told != position
        return outcome, told


class SaysNotDone(Store):
    def append_log(self, asked: dict[str, Any], session: dict[str, Any]) -> tuple[Outcome, Any]:
        outcome, answer = super().append_log(asked, session)
        if len(session["logs"]) > 20 and not self.wrong:
            self.wrong += 1
            return Outcome.NOT_DONE, None
        return outcome, answer


@pytest.mark.parametrize("store", Store.__subclasses__())
def test_it_sees_what_is_done_wrongly(store: type[Store]) -> None:
    for seed in range(10):
        wrong = store()
        deleting = store is LooksAtTheVersionOnly
        operations = Simulation(seed, wrong, deleting=deleting).run(400)
        assert wrong.wrong
        assert check(operations), seed


# -- against every order


def can_be_put_in_order(operations: list[Operation]) -> bool:
    """Try every order: no memory, no positions, nothing first because it fits."""

    def from_here(left: list[Operation], state: checker.Stored) -> bool:
        if all(each.outcome is Outcome.UNKNOWN for each in left):
            return True
        first_end = min(each.ended for each in left if each.ended is not None)
        for index, operation in enumerate(left):
            if operation.began > first_end:
                continue
            try:
                after = checker._MODEL[operation.call](lambda _, entries, new: (*entries, *new), state, operation)
            except checker._Impossible:
                continue
            if from_here(left[:index] + left[index + 1 :], after):
                return True
        return False

    return from_here([each for each in operations if each.outcome is not Outcome.NOT_DONE], None)


@given(st.integers(0, 10**6), st.data())
def test_it_agrees_with_trying_every_order(seed: int, data: st.DataObject) -> None:
    operations = Simulation(seed, Store(), clients=3, failing=0.2).run(6)
    changed = data.draw(st.integers(0, len(operations) - 1))
    other = data.draw(st.sampled_from(operations))
    operation = operations[changed]
    if operation.outcome is Outcome.DONE and other.outcome is Outcome.DONE and operation.call == other.call:
        operations[changed] = dataclasses.replace(operation, answer=other.answer)
        if operation.call == "update_session" and len(other.asked["errors"]) != len(operation.asked["errors"]):
            return
    elif operation.outcome is not Outcome.UNKNOWN and operation.call not in {"get_session", "delete_session"}:
        refused = Outcome.EXISTS if operation.call == "create_session" else Outcome.NOT_FOUND
        outcome = data.draw(st.sampled_from([Outcome.NOT_DONE, refused, operation.outcome]))
        operations[changed] = dataclasses.replace(operation, outcome=outcome)
    assert (not check(operations)) == can_be_put_in_order(operations)


# -- the journals


def test_a_journal_keeps_what_was_asked_and_told(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "c1")

    def fail(error: Exception) -> None:
        raise error

    errors = [
        StaleSessionError("s", 1, 2),
        SessionNotFoundError("s"),
        OutcomeUnknownError("?"),
        StorageError("!"),
        KeyError("k"),
    ]
    journal.record("append_error", "s", {"token": "a"}, lambda: 7, lambda position: position)
    for error in errors:
        journal.record("append_error", "s", {}, lambda error=error: fail(error), lambda _: None)  # type: ignore[misc]
    journal.close()
    first, *others = history.read(tmp_path)
    assert (first.client, first.call, first.asked, first.outcome, first.answer) == (
        "c1",
        "append_error",
        {"token": "a"},
        Outcome.DONE,
        7,
    )
    assert first.ended is not None
    assert first.began <= first.ended <= others[0].began
    assert [each.outcome for each in others] == ["stale", "not found", "unknown", "not done", "unexpected"]
    assert others[0].answer == 2


def test_of_a_client_that_was_killed_the_last_call_is_unknown(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "c1")
    journal.record("append_error", "s", {"token": "a"}, lambda: 1, lambda position: position)
    journal.record("append_error", "s", {"token": "b"}, lambda: 2, lambda position: position)
    journal.close()
    path = tmp_path / "c1.journal"
    whole = path.read_text()
    for length in range(whole.index("\n", whole.index('"b"')) + 1, len(whole)):
        path.write_text(whole[:length])
        assert [each.outcome for each in history.read(tmp_path)] == [Outcome.DONE, Outcome.UNKNOWN]
    path.write_text(whole[: whole.index('"b"')])
    assert [each.outcome for each in history.read(tmp_path)] == [Outcome.DONE]


def test_what_sees_all_sessions_is_an_operation_on_each(tmp_path: Path) -> None:
    found = call("find_sessions", 1, 2, {"s1": [1, "c", 0, 0], "s3": [1, "c", 0, 0]}, ids=["s1", "s2"])
    separate = history.by_session([found])
    assert {name: [each.answer for each in own] for name, own in separate.items()} == {
        "s1": [[1, "c", 0, 0]],
        "s2": [None],
    }


def test_the_longest_gap_is_between_acknowledgements() -> None:
    times = [(1, 2 * 10**9), (2, None), (3 * 10**9, 5 * 10**9), (4 * 10**9, 5 * 10**9 + 1)]
    assert history.longest_gap(append(began, ended, "a", 1) for began, ended in times) == 3.0
    assert history.longest_gap([]) == 0
