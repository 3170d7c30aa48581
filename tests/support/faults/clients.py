"""A client that uses sessions at random, as an application does, and records its calls and their answers.

Each write carries a unique text, its token: in the row (``active_task_id``), in the documents, and in the messages of
its entries. The checker identifies each write by its token wherever it is read.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from tests.support.faults.history import Journal, Outcome, Reply
from vibeforge_sessions import Session, SessionRepository

_PAUSE: Final = 0.02
"""Seconds after a failed call, so that an unreachable server does not receive thousands of calls."""
_HELD: Final = 0.6
"""Probability that an update uses the client's copy instead of reading the session first."""
_RETRIES: Final = 2
"""Number of retries of an update that failed or whose outcome is unknown."""


class Counter(Protocol):
    """The number of acknowledged calls of a client; may be in shared memory."""

    value: int


class Count:
    """A counter of this process."""

    value = 0


class Client:
    """A client with a repository, a journal, and some sessions that it shares with other clients."""

    def __init__(
        self, repository: SessionRepository, journal: Journal, session_ids: Sequence[str], counter: Counter
    ) -> None:
        self._repository = repository
        self._journal = journal
        self._session_ids = session_ids
        self._counter = counter
        self._random = random.Random(journal.client)
        self._tokens = 0
        self._held: dict[str, Session] = {}
        self._mine: set[str] = set()
        calls: dict[Callable[[str], Reply], int] = {
            self.create: 8,
            self.get: 12,
            self.get_recent: 6,
            self.update: 30,
            self.append_error: 16,
            self.append_log: 14,
            self.list_errors: 4,
            self.list_logs: 4,
            self.find: 3,
            self.list: 2,
            self.delete: 1,
        }
        self._calls, self._weights = list(calls), list(calls.values())

    def act(self) -> None:
        """Make one call."""
        (call,) = self._random.choices(self._calls, self._weights)
        reply = call(self._random.choice(self._session_ids))
        if reply.outcome in {Outcome.UNKNOWN, Outcome.NOT_DONE}:
            time.sleep(_PAUSE)
        else:
            self._counter.value += 1

    # -- calls

    def create(self, session_id: str) -> Reply:
        session, token = Session(session_id=session_id), self._new_token()
        arguments = {"token": token, **self._fill(session, token, hot=True, documents=True)}
        reply = self._journal.record(
            "create_session", session_id, arguments, lambda: self._repository.create_session(session), lambda _: None
        )
        if reply.outcome is Outcome.DONE:
            self._mine.add(session_id)
            self._held[session_id] = session
        return reply

    def get(self, session_id: str, recent: int | None = None) -> Reply:
        reply = self._journal.record(
            "get_session",
            session_id,
            {} if recent is None else {"recent": recent},
            lambda: self._repository.get_session(session_id, recent=recent),
            lambda found: None if found is None else _contents(found),
        )
        if reply.outcome is Outcome.DONE and reply.result is not None:
            self._held[session_id] = reply.result
        else:
            self._held.pop(session_id, None)
        return reply

    def get_recent(self, session_id: str) -> Reply:
        return self.get(session_id, recent=self._random.choice([0, 1, 5, 20]))

    def update(self, session_id: str) -> Reply:
        """Change the client's copy of a session, or a copy that it has just read, and store it."""
        if session_id not in self._held or self._random.random() > _HELD:
            reply = self.get(session_id, recent=self._random.choice([None, 0, 3]))
            if reply.result is None:
                return reply
        session, token = self._held[session_id], self._new_token()
        hot, documents = self._random.choice([(True, True), (True, False), (False, True), (False, False)])
        arguments = {"token": token, "base": _base(session)}
        arguments |= self._fill(session, token, hot=hot, documents=documents, least=0 if hot or documents else 1)
        before = len(session.error_history) - len(arguments["errors"])

        def store() -> Reply:
            return self._journal.record(
                "update_session",
                session_id,
                arguments,
                lambda: self._repository.update_session(session),
                lambda _: {
                    "version": session.version,
                    "positions": [entry.position for entry in session.error_history[before:]],
                },
            )

        reply = store()
        for _ in range(_RETRIES):
            if reply.outcome in {Outcome.NOT_DONE, Outcome.UNKNOWN}:
                time.sleep(_PAUSE)  # the retry is stale if the first attempt was applied
                reply = store()
        if reply.outcome is not Outcome.DONE:
            del self._held[session_id]
        return reply

    def append_error(self, session_id: str) -> Reply:
        token = self._new_token()
        return self._journal.record(
            "append_error",
            session_id,
            {"token": token},
            lambda: self._repository.append_error(session_id, "task", token),
            lambda entry: entry.position,
        )

    def append_log(self, session_id: str) -> Reply:
        token = self._new_token()
        return self._journal.record(
            "append_log", session_id, {"token": token}, lambda: self._repository.append_log(session_id, token), _nothing
        )

    def list_errors(self, session_id: str) -> Reply:
        after, limit = self._random.randrange(30), self._random.choice([1, 10, 1000])
        return self._journal.record(
            "list_errors",
            session_id,
            {"after": after, "limit": limit},
            lambda: self._repository.list_errors(session_id, after=after, limit=limit),
            lambda found: [[entry.position, entry.error_message] for entry in found],
        )

    def list_logs(self, session_id: str) -> Reply:
        after, limit = self._random.randrange(30), self._random.choice([1, 10, 1000])
        return self._journal.record(
            "list_logs",
            session_id,
            {"after": after, "limit": limit},
            lambda: self._repository.list_logs(session_id, after=after, limit=limit),
            lambda found: [[position, _token_of(line)] for position, line in enumerate(found, after + 1)],
        )

    def find(self, _: str) -> Reply:
        return self._journal.record(
            "find_sessions",
            "",
            {"ids": list(self._session_ids)},
            lambda: self._repository.find_sessions(limit=1000),
            lambda page: {
                each.session_id: [each.version, each.active_task_id, each.error_count, each.log_count]
                for each in page.items
            },
        )

    def list(self, _: str) -> Reply:
        return self._journal.record(
            "list_sessions",
            "",
            {"ids": [*self._session_ids]},
            self._repository.list_sessions,
            lambda found: dict.fromkeys(found, True),
        )

    def delete(self, session_id: str) -> Reply:
        """Delete a session that this client has created.

        Its creation is then certain. A repository may repeat a create whose outcome is unknown. That is correct only if
        no client deletes a session whose creation was never acknowledged.
        """
        if not self._mine:
            return self.get(session_id)
        session_id = self._random.choice(sorted(self._mine))
        reply = self._journal.record(
            "delete_session", session_id, {}, lambda: self._repository.delete_session(session_id), bool
        )
        if reply.outcome is not Outcome.NOT_DONE:
            self._mine.discard(session_id)
            self._held.pop(session_id, None)
        return reply

    # -- helpers

    def _new_token(self) -> str:
        self._tokens += 1
        return f"{self._journal.client}.{self._tokens}"

    def _fill(self, session: Session, token: str, *, hot: bool, documents: bool, least: int = 0) -> dict[str, Any]:
        """Change a session; return the tokens of its row, documents and new entries."""
        if hot:
            session.active_task_id = token
            session.current_question_index = _number(token)
        if documents:
            session.concept = {"write": token}
            session.add_answer("write", token)
        errors = [f"{token}.e{number}" for number in range(self._random.randint(least, 2))]
        logs = [f"{token}.l{number}" for number in range(self._random.randint(0, 2))]
        for text in errors:
            session.add_error("task", text)
        for text in logs:
            session.add_log(text)
        _, row, written = _base(session)
        return {"hot": row, "documents": written, "errors": errors, "logs": logs}


def _nothing(_: object) -> None:
    return None


def _number(token: str) -> int:
    return int(token.rpartition(".")[2])


def _token_of(line: str) -> str:
    return line.partition("] ")[2]


def _base(session: Session) -> list[Any]:
    """Return the version of a session, and the tokens of its row and documents; a mixed token if they disagree."""
    row, concept, answer = session.active_task_id, (session.concept or {}).get("write"), session.answers.get("write")
    if row is None or _number(row) != session.current_question_index:
        row = f"{row} and {session.current_question_index}"
    return [session.version, row, concept if concept == answer else f"{concept} and {answer}"]


def _contents(session: Session) -> dict[str, Any]:
    logs = enumerate(session.logs, session.omitted_logs + 1)
    return {
        "base": _base(session),
        "errors": [[entry.position, entry.error_message] for entry in session.error_history],
        "logs": [[position, _token_of(line)] for position, line in logs],
        "omitted_errors": session.omitted_errors,
        "omitted_logs": session.omitted_logs,
    }
