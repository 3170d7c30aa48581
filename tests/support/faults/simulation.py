"""Histories that nobody had to make: a session that does one thing after another, or is told to do it wrongly.

Not a line is shared with the checker: it is to agree with this, and with what real databases do.
"""

from __future__ import annotations

import heapq
import itertools
import random
from typing import Any

from tests.support.faults.history import Operation, Outcome

ID = "s"


class Store:
    """One session, done by hand. Subclasses in ``test_checker`` do it wrongly."""

    def __init__(self) -> None:
        self.session: dict[str, Any] | None = None
        self.wrong = 0
        """How often it has done something that it should not have."""

    def do(self, call: str, asked: dict[str, Any]) -> tuple[Outcome, Any]:
        """Do it at once; return the answer."""
        if call == "create_session":
            return self.create(asked)
        if call == "delete_session":
            there, self.session = self.session is not None, None
            return Outcome.DONE, there
        if call == "get_session":
            return Outcome.DONE, self.get(asked.get("recent"))
        if self.session is None:
            return Outcome.NOT_FOUND, None
        return getattr(self, call)(asked, self.session)  # type: ignore[no-any-return]

    def create(self, asked: dict[str, Any]) -> tuple[Outcome, Any]:
        if self.session is not None:
            return Outcome.EXISTS, None
        self.session = {
            "base": [1, asked["hot"], asked["documents"]],
            "errors": list(asked["errors"]),
            "logs": list(asked["logs"]),
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

    def update_session(self, asked: dict[str, Any], session: dict[str, Any]) -> tuple[Outcome, Any]:
        if session["base"] != asked["base"]:
            return Outcome.STALE, session["base"][0]
        return self.store(asked, session)

    def store(self, asked: dict[str, Any], session: dict[str, Any]) -> tuple[Outcome, Any]:
        session["base"] = [session["base"][0] + 1, asked["hot"], asked["documents"]]
        positions = [len(session["errors"]) + number for number in range(1, len(asked["errors"]) + 1)]
        session["errors"] += asked["errors"]
        session["logs"] += asked["logs"]
        return Outcome.DONE, {"version": session["base"][0], "positions": positions}

    def append_error(self, asked: dict[str, Any], session: dict[str, Any]) -> tuple[Outcome, Any]:
        session["errors"].append(asked["token"])
        return Outcome.DONE, len(session["errors"])

    def append_log(self, asked: dict[str, Any], session: dict[str, Any]) -> tuple[Outcome, Any]:
        session["logs"].append(asked["token"])
        return Outcome.DONE, None

    def list_errors(self, asked: dict[str, Any], session: dict[str, Any], name: str = "errors") -> tuple[Outcome, Any]:
        entries = [[number, text] for number, text in enumerate(session[name], 1)]
        return Outcome.DONE, entries[asked["after"] : asked["after"] + asked["limit"]]

    def list_logs(self, asked: dict[str, Any], session: dict[str, Any]) -> tuple[Outcome, Any]:
        return self.list_errors(asked, session, "logs")


class Simulation:
    """Clients that call a store, each call done at one moment between its beginning and its end."""

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
        """Return a history of so many calls, and of last reads."""
        due: list[tuple[float, int, float, float, str, dict[str, Any]]] = []
        for client in range(self._clients):
            self._plan(due, client, self._random.random())
        for _ in range(calls):
            self._do(due, *heapq.heappop(due))
        while due:  # what is on its way may come still, or never
            planned = heapq.heappop(due)
            if self._random.random() < 0.5:
                self._do([], *planned)
        end = 1e6
        for call, asked in (("get_session", {}), ("list_errors", {"after": 0, "limit": 1000})):
            self._do([], end, self._clients, end - 1, end + 1, call, asked)
            end += 10
        return self.operations

    def _plan(self, due: list[Any], client: int, began: float) -> None:
        point = began + self._random.expovariate(1)
        ended = point + self._random.expovariate(1)
        call, asked = self._ask(client)
        writes = call not in {"get_session", "list_errors", "list_logs"}
        if writes and self._random.random() < self._failing:
            # nobody hears of it again, and it may come much later; its client goes on
            when = began + self._random.expovariate(0.1)
            heapq.heappush(due, (when, client, began, float("inf"), call, asked))
            self._plan(due, client, ended)
        else:
            heapq.heappush(due, (point, client, began, ended, call, asked))

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
        asked: dict[str, dict[str, Any]] = {
            "create_session": {"hot": token, "documents": token, **entries},
            "append_error": {"token": token},
            "append_log": {"token": token},
            "delete_session": {},
            "list_errors": {"after": self._random.randrange(10), "limit": self._random.choice([1, 3, 1000])},
            "list_logs": {"after": self._random.randrange(10), "limit": self._random.choice([1, 3, 1000])},
            "get_session": self._random.choice([{}, {"recent": 3}, {"recent": 0}]),
        }
        call = call if call in asked else "get_session"
        return call, asked[call]

    def _do(
        self, due: list[Any], point: float, client: int, began: float, ended: float, call: str, asked: dict[str, Any]
    ) -> None:
        outcome, answer = self._store.do(call, asked)
        if call == "get_session" and answer is not None:
            self._bases[client] = answer["base"]
        heard = ended != float("inf")
        self.operations.append(
            Operation(
                client=f"c{client}",
                call=call,
                session_id=ID,
                began=round(began * 1e6),
                ended=round(ended * 1e6) if heard else None,
                outcome=outcome if heard else Outcome.UNKNOWN,
                asked=asked,
                answer=answer if heard else None,
            )
        )
        if heard and client < self._clients:
            self._plan(due, client, ended + self._random.expovariate(10))
