"""The checker: histories written by hand, simulated histories, and a comparison with an exhaustive search."""

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

# -- histories written by hand


def call(
    name: str, began: int, ended: int | None, answer: Any = None, outcome: Outcome = Outcome.DONE, **arguments: Any
) -> Operation:
    if ended is None:
        outcome = Outcome.UNKNOWN
    return Operation("c", name, ID, began, ended, outcome, arguments, answer)


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
    arguments = {"base": base, "hot": token, "documents": token, "errors": list(errors), "logs": []}
    return call("update_session", began, ended, answer, outcome, **arguments)


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
    "overlapping calls in either order": [create(1, 2), append(3, 9, "a", 2), append(4, 8, "b", 1)],
    "a read sees an unacknowledged append": [create(1, 2), append(3, 9, "a", 1), read(4, 5, FIRST, "a")],
    "a read does not see an unacknowledged append": [create(1, 2), append(3, 9, "a", 1), read(4, 5, FIRST)],
    "an unknown append is done": [create(1, 2), append(3, None, "a"), read(4, 5, FIRST, "a")],
    "an unknown append is done later": [create(1, 2), append(3, None, "a"), read(4, 5, FIRST), read(6, 7, FIRST, "a")],
    "an unknown append is never done": [
        create(1, 2),
        append(3, None, "a"),
        append(4, 5, "b", 1),
        read(6, 7, FIRST, "b"),
    ],
    "an unknown append is visible by the next position only": [
        create(1, 2),
        append(3, None, "a"),
        append(4, 5, "b", 2),
    ],
    "an unknown append is deleted before a read": [create(1, 2), append(3, None, "a"), delete(4, 5), read(6, 7, None)],
    "an unknown create": [create(1, None), append(2, 3, "a", 1), read(4, 5, FIRST, "a")],
    "an unknown delete": [create(1, 2), delete(3, None, None), read(4, 5, FIRST), create(6, 7, "d")],
    "an unknown update": [
        create(1, 2),
        update(3, None, "u", FIRST),
        update(4, 5, "v", FIRST, 2, Outcome.STALE),
        read(6, 7, SECOND),
    ],
    "rejected calls": [
        call("append_error", 0, 1, None, Outcome.NOT_FOUND, token="a"),
        create(1, 2),
        create(3, 4, "d", Outcome.EXISTS),
        update(3, 4, "u", [1, "x", "x"], 1, Outcome.STALE),
    ],
    "a failed append": [
        create(1, 2),
        call("append_error", 3, 4, None, Outcome.NOT_DONE, token="a"),
        append(5, 6, "b", 1),
        read(7, 8, FIRST, "b"),
    ],
    "two incarnations": [
        create(1, 2),
        append(3, 4, "a", 1),
        delete(5, 6),
        create(7, 8, "d"),
        read(9, 10, [1, "d", "d"]),
    ],
}


@pytest.mark.parametrize("name", LINEARIZABLE)
def test_linearizable_history_has_no_violation(name: str) -> None:
    assert check(LINEARIZABLE[name]) == []


VIOLATIONS = {
    "an acknowledged append is lost": [create(1, 2), append(3, 4, "a", 1), read(5, 6, FIRST)],
    "an acknowledged log is lost": [create(1, 2), log(3, 4, "a"), read(5, 6, FIRST)],
    "an acknowledged update is lost": [create(1, 2), update(3, 4, "u", FIRST, 2), read(5, 6, FIRST)],
    "an acknowledged create is lost": [create(1, 2), read(3, 4, None)],
    "an acknowledged delete is undone": [create(1, 2), delete(3, 4), read(5, 6, FIRST)],
    "an append is stored twice": [create(1, 2), append(3, 4, "a", 1), read(5, 6, FIRST, "a", "a")],
    "a log is stored twice": [create(1, 2), log(3, 4, "a"), read(5, 6, FIRST, logs=["a", "a"])],
    "an append is executed twice, and read once": [create(1, 2), append(3, 4, "a", 1), append(5, 6, "b", 3)],
    "a delete is executed twice": [create(1, 2), delete(3, 4), create(5, 6, "d"), read(7, 8, None)],
    "two deletes of one incarnation": [create(1, 2), delete(3, 4), delete(5, 6)],
    "two updates of one version": [create(1, 2), update(3, 9, "u", FIRST, 2), update(4, 8, "v", FIRST, 3)],
    "an update of an old version": [
        create(1, 2),
        update(3, 4, "u", FIRST, 2),
        update(5, 6, "v", FIRST, 3),
        read(7, 8, [3, "v", "v"]),
    ],
    "an update of another incarnation": [create(1, 2), delete(3, 4), create(5, 6, "d"), update(7, 8, "u", FIRST, 2)],
    "a version is left out": [create(1, 2), update(3, 4, "u", FIRST, 3)],
    "an old state is read": [create(1, 2), append(3, 4, "a", 1), read(5, 6, FIRST), read(7, 8, FIRST, "a")],
    "an append is read before its call": [create(1, 2), read(3, 4, FIRST, "a"), append(5, 6, "a", 1)],
    "an entry that was read disappears": [
        create(1, 2),
        append(3, 9, "a", 1),
        read(4, 5, FIRST, "a"),
        read(6, 7, FIRST),
    ],
    "two snapshots in one read": [create(1, 2), update(3, 4, "u", FIRST, 2), read(5, 6, [2, "u", "c"])],
    "a history of another snapshot": [
        create(1, 2),
        update(3, 4, "u", FIRST, 2, errors=["a"]),
        read(5, 6, SECOND),
        read(7, 8, SECOND, "a"),
    ],
    "a position twice": [create(1, 2), append(3, 4, "a", 1), append(5, 6, "b", 1)],
    "a position is left out": [create(1, 2), append(3, 4, "a", 2)],
    "a reported position differs from the stored one": [
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
    "the history of an old incarnation": [
        create(1, 2),
        append(3, 4, "a", 1),
        delete(5, 6),
        create(7, 8, "d"),
        read(9, 10, [1, "d", "d"], "a"),
    ],
    "reported as not done, but stored": [
        create(1, 2),
        call("append_error", 3, 4, None, Outcome.NOT_DONE, token="a"),
        read(5, 6, FIRST, "a"),
    ],
    "reported as stale, but stored": [create(1, 2), update(3, 4, "u", FIRST, 2, Outcome.STALE), read(5, 6, SECOND)],
    "reported as stale, but current": [create(1, 2), update(3, 4, "u", FIRST, 1, Outcome.STALE)],
    "reported as existing, but missing": [create(1, 2, outcome=Outcome.EXISTS)],
    "reported as not found, but present": [
        create(1, 2),
        call("append_error", 3, 4, None, Outcome.NOT_FOUND, token="a"),
    ],
    "an unknown append is stored twice": [create(1, 2), append(3, None, "a"), read(4, 5, FIRST, "a", "a")],
    "an unknown append is read before its call": [create(1, 2), read(3, 4, FIRST, "a"), append(5, None, "a")],
    "an unexpected error": [create(1, 2, outcome=Outcome.UNEXPECTED)],
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_violation_is_found(name: str) -> None:
    (violation,) = check(VIOLATIONS[name])
    assert violation.session_id == ID


def test_crash_may_revoke_data_that_was_read_but_not_acknowledged() -> None:
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


def test_violation_names_the_calls_that_do_not_fit() -> None:
    (violation,) = check(VIOLATIONS["reported as not done, but stored"])
    assert "1 of 2 answered calls" in str(violation)
    assert "reported as not done, but read: [0.000, 0.000] c: append_error(token=a)" in str(violation)
    (violation,) = check(VIOLATIONS["a log is stored twice"])
    assert "log a at [1, 2]" in str(violation)


def test_search_beyond_the_limit_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checker, "MOST_STEPS", 3)
    (violation,) = check(LINEARIZABLE["two incarnations"])
    assert "no order was found in 3 steps" in str(violation)


# -- simulated histories


@pytest.mark.parametrize("failing", [0.0, 0.05, 0.1, 0.15])
@pytest.mark.parametrize("seed", range(10))
def test_simulated_history_is_linearizable(seed: int, failing: float) -> None:
    operations = Simulation(seed, Store(), failing=failing).run(300)
    assert "\n".join(map(str, check(operations))) == ""


class LosesWrites(Store):
    def append_error(self, arguments: dict[str, Any], session: dict[str, Any]) -> tuple[Outcome, Any]:
        if len(session["errors"]) > 30 and not self.wrong:
            self.wrong += 1
            return Outcome.DONE, len(session["errors"]) + 1
        return super().append_error(arguments, session)


class AppendsTwice(Store):
    def append_log(self, arguments: dict[str, Any], session: dict[str, Any]) -> tuple[Outcome, Any]:
        if len(session["logs"]) > 20 and not self.wrong:
            self.wrong += 1
            super().append_log(arguments, session)
        return super().append_log(arguments, session)


class IgnoresVersion(Store):
    def update_session(self, arguments: dict[str, Any], session: dict[str, Any]) -> tuple[Outcome, Any]:
        self.wrong += session["base"] != arguments["base"]
        return self.store(arguments, session)


class IgnoresWriteId(Store):
    """A store that compares versions only, and accepts updates of another incarnation."""

    def update_session(self, arguments: dict[str, Any], session: dict[str, Any]) -> tuple[Outcome, Any]:
        if session["base"][0] != arguments["base"][0]:
            return super().update_session(arguments, session)
        self.wrong += session["base"] != arguments["base"]
        return self.store(arguments, session)


class ReturnsStaleReads(Store):
    """A store whose every tenth read returns the state before the last six appends."""

    def __init__(self) -> None:
        super().__init__()
        self._reads = 0
        self._before: deque[Any] = deque(maxlen=6)

    def append_error(self, arguments: dict[str, Any], session: dict[str, Any]) -> tuple[Outcome, Any]:
        self._before.append(copy.deepcopy(session))
        return super().append_error(arguments, session)

    def get(self, recent: int | None) -> dict[str, Any] | None:
        self._reads += 1
        if self._reads % 10 or len(self._before) < 6:
            return super().get(recent)
        self.wrong += 1
        now, self.session = self.session, self._before[0]
        found = super().get(recent)
        self.session = now
        return found


class ReportsPositionsFromARead(Store):
    """A store that reports the position that was next at an earlier time."""

    def __init__(self) -> None:
        super().__init__()
        self._read = 0

    def append_error(self, arguments: dict[str, Any], session: dict[str, Any]) -> tuple[Outcome, Any]:
        reported, self._read = self._read + 1, len(session["errors"])
        outcome, position = super().append_error(arguments, session)
        self.wrong += reported != position
        return outcome, reported


class ReportsWriteAsFailed(Store):
    def append_log(self, arguments: dict[str, Any], session: dict[str, Any]) -> tuple[Outcome, Any]:
        outcome, answer = super().append_log(arguments, session)
        if len(session["logs"]) > 20 and not self.wrong:
            self.wrong += 1
            return Outcome.NOT_DONE, None
        return outcome, answer


@pytest.mark.parametrize("store", Store.__subclasses__())
def test_history_of_a_wrong_store_has_a_violation(store: type[Store]) -> None:
    for seed in range(10):
        wrong = store()
        deleting = store is IgnoresWriteId
        operations = Simulation(seed, wrong, deleting=deleting).run(400)
        assert wrong.wrong
        assert check(operations), seed


# -- comparison with an exhaustive search


def has_an_order(operations: list[Operation]) -> bool:
    """Try every order, without a cache and without shortcuts."""

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
def test_checker_agrees_with_an_exhaustive_search(seed: int, data: st.DataObject) -> None:
    operations = Simulation(seed, Store(), clients=3, failing=0.2).run(6)
    changed = data.draw(st.integers(0, len(operations) - 1))
    other = data.draw(st.sampled_from(operations))
    operation = operations[changed]
    if operation.outcome is Outcome.DONE and other.outcome is Outcome.DONE and operation.call == other.call:
        operations[changed] = dataclasses.replace(operation, answer=other.answer)
        if operation.call == "update_session" and len(other.arguments["errors"]) != len(operation.arguments["errors"]):
            return
    elif operation.outcome is not Outcome.UNKNOWN and operation.call not in {"get_session", "delete_session"}:
        rejected = Outcome.EXISTS if operation.call == "create_session" else Outcome.NOT_FOUND
        outcome = data.draw(st.sampled_from([Outcome.NOT_DONE, rejected, operation.outcome]))
        operations[changed] = dataclasses.replace(operation, outcome=outcome)
    assert (not check(operations)) == has_an_order(operations)


# -- journals


def test_journal_keeps_arguments_and_answers(tmp_path: Path) -> None:
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
    assert (first.client, first.call, first.arguments, first.outcome, first.answer) == (
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


def test_last_call_of_a_killed_client_is_unknown(tmp_path: Path) -> None:
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


def test_call_on_all_sessions_is_an_operation_on_each(tmp_path: Path) -> None:
    found = call("find_sessions", 1, 2, {"s1": [1, "c", 0, 0], "s3": [1, "c", 0, 0]}, ids=["s1", "s2"])
    separate = history.by_session([found])
    assert {name: [each.answer for each in own] for name, own in separate.items()} == {
        "s1": [[1, "c", 0, 0]],
        "s2": [None],
    }


def test_longest_gap_is_between_acknowledgements() -> None:
    times = [(1, 2 * 10**9), (2, None), (3 * 10**9, 5 * 10**9), (4 * 10**9, 5 * 10**9 + 1)]
    assert history.longest_gap(append(began, ended, "a", 1) for began, ended in times) == 3.0
    assert history.longest_gap([]) == 0
