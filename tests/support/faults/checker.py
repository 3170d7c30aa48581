"""Is there an order in which these calls, one after another, would have given these answers?

A history is linearizable if each call can be given one moment between its beginning and its end so that all answers are
those of a session that is asked for one thing after another. The search is that of Wing and Gong, with Lowe's memory of
what has been tried (a set of calls done, and the session after them), for one session at a time: what is so for each
session is so for all of them together.

What makes it quick: versions and positions are given once, and each write is known by its text wherever it is read.

- A call that changes nothing and fits now may come now: putting it first takes nothing from the others.
- An entry that was read, or acknowledged, at a position may come at that position only.
- Writes that nobody ever saw are all alike, and of those that nobody answered the first comes first.

`Outcome.NOT_DONE` is a promise, too: nothing was written. Such calls are left out, so that nothing explains how
somebody could read what they wrote. `Outcome.UNKNOWN` may come at any moment after it was begun, or not at all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

from tests.support.faults.history import Crash, Operation, Outcome, by_session, without_glimpses

MOST_STEPS: Final = 100_000
"""A history that takes more cannot be judged, and that is a failure: those of the tests take some hundred."""
_SHOWN: Final = 12
UNSEEN: Final = "somebody"


class State(NamedTuple):
    """A session: its version, who wrote its row and its documents last, its entries (None for what nobody read)."""

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


def check(operations: Iterable[Operation], *, glimpses: Iterable[Crash] = ()) -> list[Violation]:
    """Return what is wrong with a history: nothing, if it is linearizable for each session.

    :param glimpses: crashes that may take back what somebody has read (see `history.without_glimpses`).
    """
    violations = []
    for session_id, own in sorted(by_session(operations).items()):
        unexpected = [each for each in own if each.outcome is Outcome.UNEXPECTED]
        if unexpected:
            violations.append(Violation(session_id, "unexpected errors", tuple(map(str, unexpected[:_SHOWN]))))
            continue
        violations += filter(None, [_Search(session_id, without_glimpses(own, glimpses)).violation()])
    return violations


class _Impossible(Exception):  # noqa: N818 (no error: this call cannot come next)
    """The call could not have had this answer now."""


def _expect(true: bool) -> None:
    if not true:
        raise _Impossible


class _Search:
    """The search of one session's order."""

    def __init__(self, session_id: str, operations: list[Operation]) -> None:
        self._session_id = session_id
        self._left_out = [each for each in operations if each.outcome is Outcome.NOT_DONE]
        self._operations = sorted(
            (
                each
                for each in operations
                # what an unanswered read would have said, nobody knows
                if each.outcome is not Outcome.NOT_DONE and (each.outcome is not Outcome.UNKNOWN or each.changes)
            ),
            key=lambda each: each.began,
        )
        self._positions: dict[tuple[str, str], set[int]] = {}
        for each in self._operations:
            for kind, token, position in _seen(each):
                self._positions.setdefault((kind, token), set()).add(position)
        self._seen = {token for _, token in self._positions}
        for each in self._operations:
            self._seen.update(_writers(each))
        self._operations = [self._without_unseen(each) for each in self._operations]
        self._before = self._first_of_their_kind()
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
                if not operation.changes and self._after(state, operation) is not _impossible:
                    mask |= 1 << index
        return mask, state

    def _next(self, mask: int, state: Stored, window: list[int]) -> list[tuple[int, Stored]]:
        """Return the ways on; what was answered first, since what was not may not have happened at all."""
        ways = []
        for index in sorted(window, key=self._urgency):
            operation = self._operations[index]
            if operation.changes and self._may_come(mask, index):
                after = self._after(state, operation)
                if not isinstance(after, _Nothing):
                    ways.append((mask | 1 << index, after))
        return ways

    def _without_unseen(self, operation: Operation) -> Operation:
        """Return the operation without the tokens that nobody has seen: they tell nothing apart."""
        asked = dict(operation.asked)
        for name in ("hot", "documents"):
            if name in asked and asked[name] not in self._seen:
                asked[name] = UNSEEN
        return dataclasses.replace(operation, asked=asked)

    def _first_of_their_kind(self) -> dict[int, int]:
        """Return for calls without an answer the one before that does the same, if there is one.

        Both may come at any time after they were begun, so that one will do as well as the other.
        """
        before: dict[int, int] = {}
        last: dict[tuple[Any, ...], int] = {}
        for index, operation in enumerate(self._operations):
            if operation.outcome is Outcome.UNKNOWN and self._seen.isdisjoint(_entries(operation)):
                asked = operation.asked
                counts = [len(asked.get(name, ())) for name in ("errors", "logs")]
                kind = (operation.call, *asked.get("base", ()), asked.get("hot"), asked.get("documents"), *counts)
                if kind in last:
                    before[index] = last[kind]
                last[kind] = index
        return before

    def _may_come(self, mask: int, index: int) -> bool:
        return index not in self._before or bool(mask >> self._before[index] & 1)

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
        for operation in self._left_out:
            if not self._seen.isdisjoint([operation.asked.get("token"), *_entries(operation)]):
                yield f"said not to be done, and seen: {operation}"


class _Nothing:
    """No state at all."""


_impossible: Final = _Nothing()
Place = Callable[[str, tuple[str | None, ...], Iterable[str]], tuple[str | None, ...]]


def _entries(operation: Operation) -> list[str]:
    """Return the tokens of the entries that a call adds."""
    asked = operation.asked
    if operation.call in {"append_error", "append_log"}:
        return [asked["token"]]
    return [*asked.get("errors", ()), *asked.get("logs", ())]


def _writers(operation: Operation) -> list[Any]:
    """Return who was seen to have written the session before this call."""
    if operation.call == "find_sessions":
        return [operation.answer[1]] if operation.answer else []
    read = operation.answer if operation.call == "get_session" else operation.asked
    return list((read or {}).get("base", []))[1:]


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
    if operation.outcome is not Outcome.UNKNOWN:
        positions = list(range(len(state.errors) + 1, len(after.errors) + 1))
        _expect(answer == {"version": after.version, "positions": positions})
    return after


def _append(place: Place, state: Stored, operation: Operation) -> Stored:
    if operation.outcome is Outcome.NOT_FOUND:
        _expect(state is None)
        return state
    if state is None:
        raise _Impossible
    token = operation.asked["token"]
    if operation.call == "append_error":
        _expect(operation.outcome is Outcome.UNKNOWN or operation.answer == len(state.errors) + 1)
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
