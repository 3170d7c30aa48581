"""Linearizability check: search an order of calls, executed one after another, that explains all their answers.

A history is linearizable if each call can be assigned one moment between its beginning and its end so that all answers
are those of a sequential session. The search is that of Wing and Gong, with Lowe's cache of visited configurations (the
set of executed calls, and the session after them). It handles one session at a time, because a history is linearizable
if it is linearizable for each session.

The search is fast because versions and positions are unique, and because each write is identified by its text wherever
it is read:

- A call that changes nothing and fits now may come next: executing it first restricts no other call.
- An entry that was read or acknowledged at a position can only be appended at that position.
- Unanswered writes that no call has read are interchangeable, so the earliest of them comes first.

`Outcome.NOT_DONE` is a guarantee too: nothing was written. Such calls are left out, so that no order explains a read of
their writes. A call with `Outcome.UNKNOWN` may be executed at any moment after its beginning, or never.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

from tests.support.faults.history import Crash, Operation, Outcome, by_session, without_glimpses

MOST_STEPS: Final = 100_000
"""Limit of the search. A longer search counts as a failure: the histories of the tests need some hundred steps."""
_SHOWN: Final = 12
UNSEEN: Final = "unseen"


class State(NamedTuple):
    """A session: version, tokens of the last writes of row and documents, and entries (None if no call read them)."""

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
"""None: the session does not exist."""


@dataclasses.dataclass(frozen=True)
class Violation:
    """A session whose calls cannot be ordered, and the point where the search ended."""

    session_id: str
    reason: str
    details: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n  ".join([f"session {self.session_id!r}: {self.reason}", *self.details])


def check(operations: Iterable[Operation], *, glimpses: Iterable[Crash] = ()) -> list[Violation]:
    """Return the violations of a history; none if it is linearizable for each session.

    :param glimpses: crashes that may have revoked data that a client had read (see `history.without_glimpses`).
    """
    violations = []
    for session_id, own in sorted(by_session(operations).items()):
        unexpected = [each for each in own if each.outcome is Outcome.UNEXPECTED]
        if unexpected:
            violations.append(Violation(session_id, "unexpected errors", tuple(map(str, unexpected[:_SHOWN]))))
            continue
        violations += filter(None, [_Search(session_id, without_glimpses(own, glimpses)).violation()])
    return violations


class _Impossible(Exception):  # noqa: N818 (not an error: this call cannot come next)
    """The call could not have had this answer in this state."""


def _expect(true: bool) -> None:
    if not true:
        raise _Impossible


class _Search:
    """The search for an order of one session's calls."""

    def __init__(self, session_id: str, operations: list[Operation]) -> None:
        self._session_id = session_id
        self._left_out = [each for each in operations if each.outcome is Outcome.NOT_DONE]
        self._operations = sorted(
            (
                each
                for each in operations
                # an unanswered read restricts nothing
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
            return Violation(self._session_id, "an entry is stored at two positions", shown)
        found = self._search()
        if found:
            return None
        done, mask, state = self._deepest
        if found is None:
            reason = f"no order was found in {MOST_STEPS} steps"
        else:
            reason = f"not linearizable: {done} of {self._required.bit_count()} answered calls can be ordered"
        return Violation(self._session_id, reason, tuple(self._explain(mask, state)))

    # -- search

    def _search(self) -> bool | None:
        """Return whether an order exists; None if the search has reached its limit."""
        tried: set[tuple[int, Stored]] = set()
        branches: list[Iterator[tuple[int, Stored]]] = [iter([(0, None)])]
        while branches:
            following = next(branches[-1], None)
            if following is None:
                branches.pop()
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
            branches.append(iter(self._next(mask, state, window)))
        return False

    def _window(self, mask: int) -> Iterator[int]:
        """Yield the calls that may come next: no other remaining call has ended before their beginning."""
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
        """Execute every call that changes nothing and fits."""
        before = None
        while before != mask:
            before = mask
            for index in self._window(mask):
                operation = self._operations[index]
                if not operation.changes and self._after(state, operation) is not _impossible:
                    mask |= 1 << index
        return mask, state

    def _next(self, mask: int, state: Stored, window: list[int]) -> list[tuple[int, Stored]]:
        """Return the possible next steps, answered calls first, because unanswered calls may never have happened."""
        branches = []
        for index in sorted(window, key=self._urgency):
            operation = self._operations[index]
            if operation.changes and self._may_come(mask, index):
                after = self._after(state, operation)
                if not isinstance(after, _Nothing):
                    branches.append((mask | 1 << index, after))
        return branches

    def _without_unseen(self, operation: Operation) -> Operation:
        """Return the operation without tokens that no call has read, because they distinguish nothing."""
        arguments = dict(operation.arguments)
        for name in ("hot", "documents"):
            if name in arguments and arguments[name] not in self._seen:
                arguments[name] = UNSEEN
        return dataclasses.replace(operation, arguments=arguments)

    def _first_of_their_kind(self) -> dict[int, int]:
        """Return, for each unanswered call, the previous unanswered call with the same effect, if there is one.

        Both may be executed at any time after their beginnings, so that trying one order of them is sufficient.
        """
        before: dict[int, int] = {}
        last: dict[tuple[Any, ...], int] = {}
        for index, operation in enumerate(self._operations):
            if operation.outcome is Outcome.UNKNOWN and self._seen.isdisjoint(_entries(operation)):
                arguments = operation.arguments
                counts = [len(arguments.get(name, ())) for name in ("errors", "logs")]
                kind = (
                    operation.call,
                    *arguments.get("base", ()),
                    arguments.get("hot"),
                    arguments.get("documents"),
                    *counts,
                )
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
        """Return a history after an append, if each entry gets the position where it was read."""
        for token in tokens:
            seen = self._positions.get((kind, token))
            _expect(seen is None or len(entries) + 1 in seen)
            entries = (*entries, None if seen is None else token)
        return entries

    # -- explanation of a violation

    def _remember(self, mask: int, state: Stored) -> None:
        done = (mask & self._required).bit_count()
        if done > self._deepest[0]:
            self._deepest = (done, mask, state)

    def _explain(self, mask: int, state: Stored) -> Iterator[str]:
        yield f"then the state is: {state or 'no session'}, and none of these calls fits:"
        window = list(self._window(mask))
        for index in sorted(window, key=self._urgency)[:_SHOWN]:
            yield str(self._operations[index])
        placed = [each for index, each in enumerate(self._operations) if mask >> index & 1]
        yield "previous calls, in the order of their ends:"
        for operation in sorted(placed, key=lambda each: each.ended or each.began)[-_SHOWN:]:
            yield str(operation)
        for operation in self._left_out:
            if not self._seen.isdisjoint([operation.arguments.get("token"), *_entries(operation)]):
                yield f"reported as not done, but read: {operation}"


class _Nothing:
    """The absence of a possible state."""


_impossible: Final = _Nothing()
Place = Callable[[str, tuple[str | None, ...], Iterable[str]], tuple[str | None, ...]]


def _entries(operation: Operation) -> list[str]:
    """Return the tokens of the entries that a call adds."""
    arguments = operation.arguments
    if operation.call in {"append_error", "append_log"}:
        return [arguments["token"]]
    return [*arguments.get("errors", ()), *arguments.get("logs", ())]


def _writers(operation: Operation) -> list[Any]:
    """Return the tokens of the session's writes that a call has read."""
    if operation.call == "find_sessions":
        return [operation.answer[1]] if operation.answer else []
    read = operation.answer if operation.call == "get_session" else operation.arguments
    return list((read or {}).get("base", []))[1:]


def _seen(operation: Operation) -> Iterator[tuple[str, str, int]]:
    """Yield each entry whose position an answer contains."""
    answer, arguments = operation.answer, operation.arguments
    if operation.outcome is not Outcome.DONE:
        return
    if operation.call == "append_error":
        yield "error", arguments["token"], answer
    elif operation.call == "update_session":
        for token, position in zip(arguments["errors"], answer["positions"], strict=True):
            yield "error", token, position
    elif operation.call == "get_session" and answer is not None:
        for kind in ("error", "log"):
            for position, token in answer[f"{kind}s"]:
                yield kind, token, position
    elif operation.call in {"list_errors", "list_logs"}:
        for position, token in answer:
            yield "error" if operation.call == "list_errors" else "log", token, position


# -- model: the state after each call, or `_Impossible` if the model would give another answer


def _create(place: Place, state: Stored, operation: Operation) -> Stored:
    if operation.outcome is Outcome.EXISTS:
        _expect(state is not None)
        return state
    _expect(state is None)
    arguments = operation.arguments
    return State(
        1,
        arguments["hot"],
        arguments["documents"],
        place("error", (), arguments["errors"]),
        place("log", (), arguments["logs"]),
    )


def _update(place: Place, state: Stored, operation: Operation) -> Stored:
    arguments, answer = operation.arguments, operation.answer
    if operation.outcome is Outcome.NOT_FOUND:
        _expect(state is None)
        return state
    if state is None:
        raise _Impossible
    is_base = [state.version, state.hot, state.documents] == arguments["base"]
    if operation.outcome is Outcome.STALE:
        _expect(not is_base and answer in {None, state.version})
        return state
    _expect(is_base)
    after = State(
        state.version + 1,
        arguments["hot"],
        arguments["documents"],
        place("error", state.errors, arguments["errors"]),
        place("log", state.logs, arguments["logs"]),
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
    token = operation.arguments["token"]
    if operation.call == "append_error":
        _expect(operation.outcome is Outcome.UNKNOWN or operation.answer == len(state.errors) + 1)
        return state._replace(errors=place("error", state.errors, [token]))
    return state._replace(logs=place("log", state.logs, [token]))


def _delete(_: Place, state: Stored, operation: Operation) -> Stored:
    if operation.answer is False:
        _expect(state is None)
    else:
        _expect(state is not None)  # an unanswered delete matters only if it deletes something
    return None


def _get(_: Place, state: Stored, operation: Operation) -> Stored:
    answer = operation.answer
    if answer is None or state is None:
        _expect(answer is None and state is None)
        return state
    _expect([state.version, state.hot, state.documents] == answer["base"])
    for name, entries in (("errors", state.errors), ("logs", state.logs)):
        recent = operation.arguments.get("recent")
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
    after, limit = operation.arguments["after"], operation.arguments["limit"]
    until = min(len(entries), after + limit)
    _expect(operation.answer == [[position, entries[position - 1]] for position in range(after + 1, until + 1)])
    return state


def _find(_: Place, state: Stored, operation: Operation) -> Stored:
    found: Any = None if state is None else [state.version, state.hot, len(state.errors), len(state.logs)]
    _expect(operation.answer == found)
    return state


def _check_listed(_: Place, state: Stored, operation: Operation) -> Stored:
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
    "list_sessions": _check_listed,
}
