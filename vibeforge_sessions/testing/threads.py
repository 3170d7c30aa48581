"""Contract tests of one repository that many threads share."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from vibeforge_sessions import (
    Session,
    SessionExistsError,
    SessionNotFoundError,
    SessionRepository,
    StaleSessionError,
)
from vibeforge_sessions.testing.base import SESSION_ID, stored

THREADS = 10
ROUNDS = 5


class ThreadTests:
    """Ten threads on one repository: no write is lost, positions have no gaps, and only documented errors occur."""

    def test_concurrent_appends_and_updates_are_all_stored(self, repository: SessionRepository) -> None:
        repository.create_session(session_id=SESSION_ID)
        barrier = Barrier(THREADS)

        def work(worker: int) -> None:
            barrier.wait()
            for number in range(ROUNDS):
                repository.append_error(SESSION_ID, f"w{worker}", f"{number}")
                repository.append_log(SESSION_ID, f"w{worker} {number}")
                answer = functools.partial(Session.add_answer, question_id=f"{worker}.{number}", answer=True)
                repository.modify_session(SESSION_ID, answer, attempts=10_000)

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(work, range(THREADS)))
        session = stored(repository)
        everything = THREADS * ROUNDS
        assert len(session.answers) == everything
        assert session.version == everything + 1
        assert [entry.position for entry in session.error_history] == list(range(1, everything + 1))
        assert Counter(entry.task_id for entry in session.error_history) == {f"w{w}": ROUNDS for w in range(THREADS)}
        for worker in range(THREADS):  # the entries of each thread are in the order of its calls
            mine = [entry.error_message for entry in session.error_history if entry.task_id == f"w{worker}"]
            assert mine == [str(number) for number in range(ROUNDS)]
        assert len(set(session.logs)) == len(session.logs) == everything

    def test_one_of_many_concurrent_updates_succeeds(self, repository: SessionRepository) -> None:
        repository.create_session(session_id=SESSION_ID)
        copies = [stored(repository) for _ in range(THREADS)]
        barrier = Barrier(THREADS)

        def work(worker: int) -> bool:
            session = copies[worker]
            session.add_answer("winner", worker)
            session.add_error(f"w{worker}", "m")
            barrier.wait()
            try:
                repository.update_session(session)
            except StaleSessionError:
                return False
            return True

        with ThreadPoolExecutor(THREADS) as pool:
            won = [worker for worker, success in enumerate(pool.map(work, range(THREADS))) if success]
        assert len(won) == 1
        session = stored(repository)
        assert session.answers == {"winner": won[0]}
        assert [entry.task_id for entry in session.error_history] == [f"w{won[0]}"]

    def test_concurrent_creates_and_deletes_of_the_same_ids(self, repository: SessionRepository) -> None:
        barrier = Barrier(THREADS)

        def work(worker: int) -> None:
            barrier.wait()
            for number in range(ROUNDS):
                session_id = f"s{(worker + number) % 3}"
                with contextlib.suppress(SessionExistsError):
                    repository.create_session(session_id=session_id)
                with contextlib.suppress(SessionNotFoundError):
                    assert repository.append_error(session_id, f"w{worker}", "m").position
                session = repository.get_session(session_id)
                if session is not None:
                    positions = [entry.position for entry in session.error_history]
                    assert positions == list(range(1, len(positions) + 1))
                    session.add_log(f"w{worker}")
                    with contextlib.suppress(SessionNotFoundError, StaleSessionError):
                        repository.update_session(session)
                if worker % 2:
                    repository.delete_session(session_id)

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(work, range(THREADS)))

    def test_one_of_many_concurrent_creates_succeeds(self, repository: SessionRepository) -> None:
        barrier = Barrier(THREADS)

        def work(_: int) -> bool:
            barrier.wait()
            try:
                repository.create_session(session_id=SESSION_ID)
            except SessionExistsError:
                return False
            return True

        with ThreadPoolExecutor(THREADS) as pool:
            assert sum(pool.map(work, range(THREADS))) == 1
        assert repository.list_sessions() == [SESSION_ID]
