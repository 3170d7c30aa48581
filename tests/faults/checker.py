"""Is there an order in which these calls, one after another, would have given these answers?

A history is linearizable if each call can be given one moment between its beginning and its end so that all answers are
those of a session that is asked for one thing after another. The search is that of Wing and Gong, with Lowe's memory of
what has been tried (a set of calls done, and the session after them), for one session at a time: what is so for each
session is so for all of them together.

What makes it quick: versions and positions are given once, and each write is known by its text wherever it is read.

- A call that changes nothing and fits now may come now: putting it first takes nothing from the others.
- An entry that was read, or acknowledged, at a position may come at that position only.
- Entries that nobody ever read are all alike.

`Outcome.NOT_DONE` is a promise, too: nothing was written. Such calls are left out, so that whoever reads what they wrote
cannot be explained. `Outcome.UNKNOWN` may come at any moment after it was begun, or not at all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

from tests.faults.history import Operation, Outcome, by_session

MOST_STEPS: Final = 200_000
"""A history that takes more cannot be judged, and that is a failure: those of the tests take some thousand at the most."""
_SHOWN: Final = 12


class State(NamedTuple):
    """A session: its version, who wrote its row and its documents last, and its entries (None: one that nobody read)."""

    version: int
    hot: str
    documents: str
    errors: tuple[str | None, ...] = ()
    logs: tuple[str | None, ...] = ()

    def __str__(self) -> str:
        return (
            f"version {self.version}, row by {self.hot}, documents by {self.documents}, "
            f"{len(self.errors)} errors ending in {self.errors[-3:]}, {len(self.logs)} logs ending in {self.logs[-3:]}"
        )


Stored = State | None
"""None: there is no such session."""


@dataclasses.dataclass(frozen=True)
class Violation:
    """A session whose calls cannot be put in order, and where it ends."""

    session_id: str
    reason: str
    details: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n  ".join([f"session {self.session_id!r}: {self.reason}", *self.details])


def check(operations: Iterable[Operation]) -> list[Violation]:
    """Return what is wrong with a history: nothing, if it is linearizable for each session."""
    violations = []
    for session_id, own in sorted(by_session(operations).items()):
        unexpected = [each for each in own if each.outcome is Outcome.UNEXPECTED]
        if unexpected:
            violations.append(Violation(session_id, "unexpected errors", tuple(map(str, unexpected[:_SHOWN]))))
            continue
        violations += filter(None, [_Search(session_id, own).violation()])
    return violations


class _Impossible(Exception):  # noqa: N818 (no error: this call cannot come next)
    """The call could not have had this answer now."""


def _expect(true: bool) -> None:
    if not true:
        raise _Impossible


_IS_LEFT_OUT: Final = {Outcome.NOT_DONE}
_WRITES: Final = ("create_session", "update_session", "append_error", "append_log", "delete_session")


def _changes(operation: Operation) -> bool:
    return operation.call in _WRITES and (
        operation.outcome is Outcome.UNKNOWN
        or (operation.outcome is Outcome.DONE and operation.answer is not False)  # False: there was nothing to delete
    )


class _Search:
    """The search of one session's order."""

    def __init__(self, session_id: str, operations: list[Operation]) -> None:
        self._session_id = session_id
        self._left_out = [each for each in operations if each.outcome in _IS_LEFT_OUT]
        self._operations = sorted(
            (
                each
                for each in operations
                # what an unanswered read would have said, nobody knows
                if each.outcome not in _IS_LEFT_OUT and (each.outcome is not Outcome.UNKNOWN or each.call in _WRITES)
            ),
            key=lambda each: each.began,
        )
        self._positions: dict[tuple[str, str], set[int]] = {}
        for each in self._operations:
            for kind, token, position in _seen(each):
                self._positions.setdefault((kind, token), set()).add(position)
        self._required = sum(
            1 << index for index, each in enumerate(self._operations) if each.outcome is not Outcome.UNKNOWN
        )
        self._deepest: tuple[int, int, Stored] = (-1, 0, None)
        self._steps = 0

    def violation(self) -> Violation | None:
        twice = sorted((key, sorted(places)) for key, places in self._positions.items() if len(places) > 1)
        if twice:
            shown = tuple(f"{kind} {token} at {places}" for (kind, token), places in twice[:_SHOWN])
            return Violation(self._session_id, "an entry is at two positions", shown)
        found = self._search()
        if found:
            return None
        done, mask, state = self._deepest
        if found is None:
            reason = f"no order was found in {MOST_STEPS} steps"
        else:
            reason = f"not linearizable: {done} of {self._required.bit_count()} answered calls can be put in order"
        return Violation(self._session_id, reason, tuple(self._explain(mask, state)))

    # -- the search

    def _search(self) -> bool | None:
        """Return whether there is an order, None if there were too many to try."""
        tried: set[tuple[int, Stored]] = set()
        ways: list[Iterator[tuple[int, Stored]]] = [iter([(0, None)])]
        while ways:
            following = next(ways[-1], None)
            if following is None:
                ways.pop()
                continue
            self._steps += 1
            if self._steps > MOST_STEPS:
                return None
            mask, state = self._read_all(*following)
            if (mask, state) in tried:
                continue
            tried.add((mask, state))
            window = list(self._window(mask))
            if mask & self._required == self._required:
                return True
            self._remember(mask, state)
            ways.append(iter(self._next(mask, state, window)))
        return False

    def _window(self, mask: int) -> Iterator[int]:
        """Yield the calls of which each may come next: none that is still to come has ended before it began."""
        first_end: int | None = None
        for index in range((~mask & (mask + 1)).bit_length() - 1, len(self._operations)):
            if mask >> index & 1:
                continue
            operation = self._operations[index]
            if first_end is not None and operation.began > first_end:
                return
            yield index
            if operation.outcome is not Outcome.UNKNOWN:
                assert operation.ended is not None
                first_end = operation.ended if first_end is None else min(first_end, operation.ended)

    def _read_all(self, mask: int, state: Stored) -> tuple[int, Stored]:
        """Put every call next that changes nothing and fits."""
        before = None
        while before != mask:
            before = mask
            for index in self._window(mask):
                operation = self._operations[index]
                if not _changes(operation) and self._after(state, operation) is not _impossible:
                    mask |= 1 << index
        return mask, state

    def _next(self, mask: int, state: Stored, window: list[int]) -> list[tuple[int, Stored]]:
        """Return the ways on; what was answered first, since what was not may not have happened at all."""
        ways = []
        for index in sorted(window, key=self._urgency):
            operation = self._operations[index]
            if _changes(operation):
                after = self._after(state, operation)
                if not isinstance(after, _Nothing):
                    ways.append((mask | 1 << index, after))
        return ways

    def _urgency(self, index: int) -> tuple[bool, int]:
        operation = self._operations[index]
        return operation.outcome is Outcome.UNKNOWN, operation.ended or operation.began

    def _after(self, state: Stored, operation: Operation) -> Stored | _Nothing:
        try:
            return _MODEL[operation.call](self._placed, state, operation)
        except _Impossible:
            return _impossible

    def _placed(self, kind: str, entries: tuple[str | None, ...], tokens: Iterable[str]) -> tuple[str | None, ...]:
        """Return a history after an append, if each entry comes to the position where it was seen."""
        for token in tokens:
            seen = self._positions.get((kind, token))
            _expect(seen is None or len(entries) + 1 in seen)
            entries = (*entries, None if seen is None else token)
        return entries

    # -- what to say when there is none

    def _remember(self, mask: int, state: Stored) -> None:
        done = (mask & self._required).bit_count()
        if done > self._deepest[0]:
            self._deepest = (done, mask, state)

    def _explain(self, mask: int, state: Stored) -> Iterator[str]:
        yield f"then it is: {state or 'not there'}, and of these none fits:"
        window = list(self._window(mask))
        for index in sorted(window, key=self._urgency)[:_SHOWN]:
            yield str(self._operations[index])
        placed = [each for index, each in enumerate(self._operations) if mask >> index & 1]
        yield "before them, in the order in which they ended:"
        for operation in sorted(placed, key=lambda each: each.ended or each.began)[-_SHOWN:]:
            yield str(operation)
        seen = {token for _, token in self._positions}
        seen |= {token for each in self._operations for token in _base(each)[1:]}
        for operation in self._left_out:
            if not seen.isdisjoint(_tokens(operation)):
                yield f"said not to be done, and seen: {operation}"


class _Nothing:
    """No state at all."""


_impossible: Final = _Nothing()
Place = Callable[[str, tuple[str | None, ...], Iterable[str]], tuple[str | None, ...]]


def _tokens(operation: Operation) -> list[str]:
    asked = operation.asked
    return [*asked.get("errors", ()), *asked.get("logs", ()), *filter(None, [asked.get("token")])]


def _base(operation: Operation) -> list[Any]:
    """Return which version of the session a client had before it."""
    read = operation.answer if operation.call == "get_session" else operation.asked
    return (read or {}).get("base", [])


def _seen(operation: Operation) -> Iterator[tuple[str, str, int]]:
    """Yield each entry that an answer tells the position of."""
    answer, asked = operation.answer, operation.asked
    if operation.outcome is not Outcome.DONE:
        return
    if operation.call == "append_error":
        yield "error", asked["token"], answer
    elif operation.call == "update_session":
        for token, position in zip(asked["errors"], answer["positions"], strict=True):
            yield "error", token, position
    elif operation.call == "get_session" and answer is not None:
        for kind in ("error", "log"):
            for position, token in answer[f"{kind}s"]:
                yield kind, token, position
    elif operation.call in {"list_errors", "list_logs"}:
        for position, token in answer:
            yield "error" if operation.call == "list_errors" else "log", token, position


# -- the session as it should be: what is stored after a call, or `_Impossible` if it would have been answered otherwise


def _create(place: Place, state: Stored, operation: Operation) -> Stored:
    if operation.outcome is Outcome.EXISTS:
        _expect(state is not None)
        return state
    _expect(state is None)
    asked = operation.asked
    return State(
        1, asked["hot"], asked["documents"], place("error", (), asked["errors"]), place("log", (), asked["logs"])
    )


def _update(place: Place, state: Stored, operation: Operation) -> Stored:
    asked, answer = operation.asked, operation.answer
    if operation.outcome is Outcome.NOT_FOUND:
        _expect(state is None)
        return state
    if state is None:
        raise _Impossible
    is_base = [state.version, state.hot, state.documents] == asked["base"]
    if operation.outcome is Outcome.STALE:
        _expect(not is_base and answer in {None, state.version})
        return state
    _expect(is_base)
    after = State(
        state.version + 1,
        asked["hot"],
        asked["documents"],
        place("error", state.errors, asked["errors"]),
        place("log", state.logs, asked["logs"]),
    )
    _expect(operation.outcome is Outcome.UNKNOWN or answer["version"] == after.version)
    return after


def _append(place: Place, state: Stored, operation: Operation) -> Stored:
    if operation.outcome is Outcome.NOT_FOUND:
        _expect(state is None)
        return state
    if state is None:
        raise _Impossible
    token = operation.asked["token"]
    if operation.call == "append_error":
        return state._replace(errors=place("error", state.errors, [token]))
    return state._replace(logs=place("log", state.logs, [token]))


def _delete(_: Place, state: Stored, operation: Operation) -> Stored:
    if operation.answer is False:
        _expect(state is None)
    else:
        _expect(state is not None)  # one that may not have been done at all is of use only if it does something
    return None


def _get(_: Place, state: Stored, operation: Operation) -> Stored:
    answer = operation.answer
    if answer is None or state is None:
        _expect(answer is None and state is None)
        return state
    _expect([state.version, state.hot, state.documents] == answer["base"])
    for name, entries in (("errors", state.errors), ("logs", state.logs)):
        recent = operation.asked.get("recent")
        omitted = 0 if recent is None else max(0, len(entries) - recent)
        _expect(answer[f"omitted_{name}"] == omitted)
        _expect(
            answer[name] == [[position, entries[position - 1]] for position in range(omitted + 1, len(entries) + 1)]
        )
    return state


def _list(_: Place, state: Stored, operation: Operation) -> Stored:
    if operation.outcome is Outcome.NOT_FOUND or state is None:
        _expect(operation.outcome is Outcome.NOT_FOUND and state is None)
        return state
    entries = state.errors if operation.call == "list_errors" else state.logs
    after, limit = operation.asked["after"], operation.asked["limit"]
    until = min(len(entries), after + limit)
    _expect(operation.answer == [[position, entries[position - 1]] for position in range(after + 1, until + 1)])
    return state


def _find(_: Place, state: Stored, operation: Operation) -> Stored:
    found: Any = None if state is None else [state.version, state.hot, len(state.errors), len(state.logs)]
    _expect(operation.answer == found)
    return state


def _is_listed(_: Place, state: Stored, operation: Operation) -> Stored:
    _expect((operation.answer is not None) == (state is not None))
    return state


_MODEL: Final[dict[str, Callable[[Place, Stored, Operation], Stored]]] = {
    "create_session": _create,
    "update_session": _update,
    "append_error": _append,
    "append_log": _append,
    "delete_session": _delete,
    "get_session": _get,
    "list_errors": _list,
    "list_logs": _list,
    "find_sessions": _find,
    "list_sessions": _is_listed,
}
