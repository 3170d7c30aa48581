"""Simulated histories of a session that executes calls one after another, correctly or incorrectly.

The simulation shares no code with the checker, so that the two can be compared with each other and with databases.
"""

from __future__ import annotations

import heapq
import itertools
import random
from typing import Any

from tests.support.faults.history import Operation, Outcome

ID = "s"


class Store:
    """One session in memory. Subclasses in ``test_checker`` are incorrect."""

    def __init__(self) -> None:
        self.session: dict[str, Any] | None = None
        self.wrong = 0
        """Number of incorrect actions."""

    def do(self, call: str, arguments: dict[str, Any]) -> tuple[Outcome, Any]:
        """Execute a call immediately; return its outcome and answer."""
        if call == "create_session":
            return self.create(arguments)
        if call == "delete_session":
            there, self.session = self.session is not None, None
            return Outcome.DONE, there
        if call == "get_session":
            return Outcome.DONE, self.get(arguments.get("recent"))
        if self.session is None:
            return Outcome.NOT_FOUND, None
        return getattr(self, call)(arguments, self.session)  # type: ignore[no-any-return]

    def create(self, arguments: dict[str, Any]) -> tuple[Outcome, Any]:
        if self.session is not None:
            return Outcome.EXISTS, None
        self.session = {
            "base": [1, arguments["hot"], arguments["documents"]],
            "errors": list(arguments["errors"]),
            "logs": list(arguments["logs"]),
        }
        return Outcome.DONE, None

    def get(self, recent: int | None) -> dict[str, Any] | None:
        if self.session is None:
            return None
        found: dict[str, Any] = {"base": list(self.session["base"])}
        for name in ("errors", "logs"):
            entries = [[number, text] for number, text in enumerate(self.session[name], 1)]
            kept = entries if recent is None else entries[len(entries) - min(recent, len(entries)) :]
            found |= {name: kept, f"omitted_{name}": len(entries) - len(kept)}
        return found

    def update_session(self, arguments: dict[str, Any], session: dict[str, Any]) -> tuple[Outcome, Any]:
        if session["base"] != arguments["base"]:
            return Outcome.STALE, session["base"][0]
        return self.store(arguments, session)

    def store(self, arguments: dict[str, Any], session: dict[str, Any]) -> tuple[Outcome, Any]:
        session["base"] = [session["base"][0] + 1, arguments["hot"], arguments["documents"]]
        positions = [len(session["errors"]) + number for number in range(1, len(arguments["errors"]) + 1)]
        session["errors"] += arguments["errors"]
        session["logs"] += arguments["logs"]
        return Outcome.DONE, {"version": session["base"][0], "positions": positions}

    def append_error(self, arguments: dict[str, Any], session: dict[str, Any]) -> tuple[Outcome, Any]:
        session["errors"].append(arguments["token"])
        return Outcome.DONE, len(session["errors"])

    def append_log(self, arguments: dict[str, Any], session: dict[str, Any]) -> tuple[Outcome, Any]:
        session["logs"].append(arguments["token"])
        return Outcome.DONE, None

    def list_errors(
        self, arguments: dict[str, Any], session: dict[str, Any], name: str = "errors"
    ) -> tuple[Outcome, Any]:
        entries = [[number, text] for number, text in enumerate(session[name], 1)]
        return Outcome.DONE, entries[arguments["after"] : arguments["after"] + arguments["limit"]]

    def list_logs(self, arguments: dict[str, Any], session: dict[str, Any]) -> tuple[Outcome, Any]:
        return self.list_errors(arguments, session, "logs")


class Simulation:
    """Clients that call a store; each call is executed at one moment between its beginning and its end."""

    def __init__(
        self, seed: int, store: Store, *, clients: int = 5, failing: float = 0.0, deleting: bool = True
    ) -> None:
        self._random = random.Random(seed)
        self._store = store
        self._clients = clients
        self._failing = failing
        self._calls = {"create_session": 3, "get_session": 4, "update_session": 5, "append_error": 4, "append_log": 3}
        self._calls |= {"list_errors": 1, "list_logs": 1, "delete_session": 1 if deleting else 0}
        self._tokens = itertools.count(1)
        self._bases: dict[int, list[Any]] = {}
        self.operations: list[Operation] = []

    def run(self, calls: int) -> list[Operation]:
        """Return a history with this many calls, followed by final reads."""
        due: list[tuple[float, int, float, float, str, dict[str, Any]]] = []
        for client in range(self._clients):
            self._plan(due, client, self._random.random())
        for _ in range(calls):
            self._do(due, *heapq.heappop(due))
        while due:  # planned calls may still be executed, or never
            planned = heapq.heappop(due)
            if self._random.random() < 0.5:
                self._do([], *planned)
        end = 1e6
        for call, arguments in (("get_session", {}), ("list_errors", {"after": 0, "limit": 1000})):
            self._do([], end, self._clients, end - 1, end + 1, call, arguments)
            end += 10
        return self.operations

    def _plan(self, due: list[Any], client: int, began: float) -> None:
        point = began + self._random.expovariate(1)
        ended = point + self._random.expovariate(1)
        call, arguments = self._ask(client)
        writes = call not in {"get_session", "list_errors", "list_logs"}
        if writes and self._random.random() < self._failing:
            # the call has no answer and may be executed much later; its client continues
            when = began + self._random.expovariate(0.1)
            heapq.heappush(due, (when, client, began, float("inf"), call, arguments))
            self._plan(due, client, ended)
        else:
            heapq.heappush(due, (point, client, began, ended, call, arguments))

    def _ask(self, client: int) -> tuple[str, dict[str, Any]]:
        (call,) = self._random.choices(list(self._calls), list(self._calls.values()))
        token = f"t{next(self._tokens)}"
        entries = {
            name: [f"{token}.{name[0]}{number}" for number in range(self._random.randrange(3))]
            for name in ("errors", "logs")
        }
        if call == "update_session" and client in self._bases:
            _, hot, documents = self._bases[client]
            changed = self._random.choice([{"hot": token}, {"documents": token}, {"hot": token, "documents": token}])
            return call, {"base": self._bases[client], "hot": hot, "documents": documents, **changed, **entries}
        arguments: dict[str, dict[str, Any]] = {
            "create_session": {"hot": token, "documents": token, **entries},
            "append_error": {"token": token},
            "append_log": {"token": token},
            "delete_session": {},
            "list_errors": {"after": self._random.randrange(10), "limit": self._random.choice([1, 3, 1000])},
            "list_logs": {"after": self._random.randrange(10), "limit": self._random.choice([1, 3, 1000])},
            "get_session": self._random.choice([{}, {"recent": 3}, {"recent": 0}]),
        }
        call = call if call in arguments else "get_session"
        return call, arguments[call]

    def _do(
        self,
        due: list[Any],
        point: float,
        client: int,
        began: float,
        ended: float,
        call: str,
        arguments: dict[str, Any],
    ) -> None:
        outcome, answer = self._store.do(call, arguments)
        if call == "get_session" and answer is not None:
            self._bases[client] = answer["base"]
        is_answered = ended != float("inf")
        self.operations.append(
            Operation(
                client=f"c{client}",
                call=call,
                session_id=ID,
                began=round(began * 1e6),
                ended=round(ended * 1e6) if is_answered else None,
                outcome=outcome if is_answered else Outcome.UNKNOWN,
                arguments=arguments,
                answer=answer if is_answered else None,
            )
        )
        if is_answered and client < self._clients:
            self._plan(due, client, ended + self._random.expovariate(10))
