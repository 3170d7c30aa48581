"""Compare the two execution paths: ``python -m benchmarks.execution_paths``.

Precompiled statements run on the DBAPI cursor, ordinary ones through SQLAlchemy's `Connection` (``fast_path=False``).
Both repositories share one SQLite file and take turns at each call. The cost of a call is the median of its CPU time.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from vibeforge_sessions import SessionPhase, SQLAlchemySessionRepository
from vibeforge_sessions.sql import create_engine, migrate
from vibeforge_sessions.testing.base import full_session

ROUNDS: Final = 2_000
WARM_UP: Final = 100


def calls_of(repository: SQLAlchemySessionRepository, name: str) -> dict[str, Callable[[], Any]]:
    """Return the measured calls by name; each works on sessions of this repository only."""
    session = repository.create_session(full_session(name))
    repository.create_session(session_id=f"{name}-appended")
    phases = (SessionPhase.EXECUTION, SessionPhase.VERIFICATION)

    def update() -> None:
        session.update_phase(phases[session.version % 2])
        repository.update_session(session)

    return {
        "append_log": lambda: repository.append_log(f"{name}-appended", "line"),
        "append_error": lambda: repository.append_error(f"{name}-appended", "task", "message"),
        "get_session": lambda: repository.get_session(name),
        "update_session": update,
        "find_sessions": lambda: repository.find_sessions(limit=10),
        "list_errors": lambda: repository.list_errors(name),
    }


def measure(folder: Path, rounds: int = ROUNDS) -> dict[str, tuple[float, float]]:
    """Return the medians of each call in seconds of CPU time: precompiled, and through SQLAlchemy's `Connection`."""
    engine = create_engine(f"sqlite:///{folder}/sessions.db")
    migrate.upgrade(engine)
    paths = [
        calls_of(SQLAlchemySessionRepository(engine, fast_path=precompiled), name)
        for precompiled, name in ((True, "precompiled"), (False, "ordinary"))
    ]
    medians = {}
    for call in paths[0]:
        times: tuple[list[float], list[float]] = ([], [])
        for turn in range(rounds + WARM_UP):
            for calls, taken in zip(paths, times, strict=True):
                began = time.process_time()
                calls[call]()
                if turn >= WARM_UP:
                    taken.append(time.process_time() - began)
        medians[call] = (statistics.median(times[0]), statistics.median(times[1]))
    engine.dispose()
    return medians


def main() -> None:
    """Print the medians in microseconds, and the cost of the precompiled path relative to the ordinary one."""
    with tempfile.TemporaryDirectory() as folder:
        medians = measure(Path(folder))
    print(f"{'call':16}{'precompiled':>14}{'ordinary':>12}{'share':>8}")
    for call, (precompiled, ordinary) in medians.items():
        print(f"{call:16}{precompiled * 1e6:14.0f}{ordinary * 1e6:12.0f}{precompiled / ordinary:8.0%}")


if __name__ == "__main__":
    main()
