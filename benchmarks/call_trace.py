"""Count the calls inside the package that one repository call makes: ``python -m benchmarks.call_trace``.

A call counts if its function is in a file of the package. The second of two identical calls is traced, on a SQLite file
with an engine of `create_engine`. "Moves" are the calls whose caller in the package is in another file.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import vibeforge_sessions
from vibeforge_sessions import SessionPhase, SQLAlchemySessionRepository
from vibeforge_sessions.sql import create_engine, migrate

PACKAGE = str(Path(vibeforge_sessions.__file__).parent)


class Trace(NamedTuple):
    """Trace of one call."""

    calls: int
    files: int
    depth: int
    moves: int


def traced(call: Callable[[], object], *, verbose: bool = False) -> Trace:
    """Return the trace of a call."""
    files: set[str] = set()
    stack: list[str] = []
    calls = depth = moves = 0

    def profile(frame: FrameType, event: str, _argument: Any) -> None:
        nonlocal calls, depth, moves
        name = frame.f_code.co_filename
        if not name.startswith(PACKAGE):
            return
        if event == "call":
            calls += 1
            moves += bool(stack) and stack[-1] != name
            stack.append(name)
            files.add(name)
            depth = max(depth, len(stack))
            if verbose:
                print(f"{'  ' * len(stack)}{name.removeprefix(PACKAGE)[1:]}  {frame.f_code.co_qualname}")
        elif event == "return" and stack:
            stack.pop()

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return Trace(calls, len(files), depth, moves)


def measure(*, verbose: bool = False) -> dict[str, Trace]:
    """Return the traces of the most frequent calls of services."""
    with tempfile.TemporaryDirectory() as folder:
        engine = create_engine(f"sqlite:///{folder}/sessions.db")
        migrate.upgrade(engine)
        repository = SQLAlchemySessionRepository(engine)
        repository.create_session(session_id="s")
        phases = [SessionPhase.BUILD_SPEC, SessionPhase.IDEA]

        def update_phase() -> Callable[[], object]:
            session = repository.get_session("s")
            assert session is not None
            session.update_phase(phases.pop())
            return lambda: repository.update_session(session)

        def append_error() -> Callable[[], object]:
            return lambda: repository.append_error("s", "task", "message")

        def get_session() -> Callable[[], object]:
            return lambda: repository.get_session("s")

        traces = {}
        for prepare in (append_error, get_session, update_phase):
            prepare()()
            call = prepare()
            if verbose:
                print(prepare.__name__)
            traces[prepare.__name__] = traced(call, verbose=verbose)
        engine.dispose()
    return traces


def main() -> None:
    """Print the traces."""
    traces = measure(verbose="--verbose" in sys.argv)
    print(f"{'call':<14}{'calls':>7}{'files':>7}{'depth':>7}{'moves':>7}")
    for name, trace in traces.items():
        print(f"{name:<14}" + "".join(f"{number:>7}" for number in trace))


if __name__ == "__main__":
    main()
