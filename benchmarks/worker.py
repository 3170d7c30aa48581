"""Process of one contender: each line of standard input is a request, each line of output an answer, as JSON.

``python -m benchmarks.worker MODULE:CLASS PLACE``. This module imports the standard library only.
"""

from __future__ import annotations

import importlib
import json
import resource
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.contender import ConflictError, Contender


def main() -> None:
    """Answer requests until the input ends."""
    module, _, name = sys.argv[1].partition(":")
    answers = sys.stdout
    sys.stdout = sys.stderr  # output of the store
    contender: Contender = getattr(importlib.import_module(module), name)(sys.argv[2])
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = DO[request.pop("do")](contender, **request)
        except Exception as error:  # noqa: BLE001 (an error of a peer is reported)
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    contender.close()


def about(contender: Contender) -> dict[str, Any]:
    """Describe the contender."""
    return {"name": contender.name, "calls": sorted(contender.calls()), **contender.about()}


def prepare(contender: Contender, entries: int) -> dict[str, Any]:
    """Store a session with this number of errors."""
    return {"session_id": contender.prepare(entries)}


def fill(contender: Contender, sessions: int) -> dict[str, Any]:
    """Store sessions until the store contains this number."""
    contender.fill(sessions)
    return {}


def measure(contender: Contender, call: str, session_id: str | None, times: int) -> dict[str, Any]:
    """Measure single calls in nanoseconds; they are prepared before."""
    work = contender.calls().get(call)
    if work is None:
        return {"unsupported": call}
    taken = []
    if call == "delete":
        targets: list[Any] = [contender.prepare(10) for _ in range(times)]
    elif call == "create":
        targets = [uuid.uuid4().hex for _ in range(times)]
        for target in targets:
            contender.draft(target)
    else:
        targets = [session_id] * times
        if call.startswith("update"):
            contender.hold(str(session_id))
    for target in targets:
        arguments = () if call == "list_page" else (target,)
        start = time.perf_counter_ns()
        work(*arguments)
        taken.append(time.perf_counter_ns() - start)
    return {"ns": taken}


def hammer(contender: Contender, session_id: str, seconds: float) -> dict[str, Any]:
    """Append for some seconds; count acknowledged appends, conflicts, and other failures."""
    append = contender.calls()["append"]
    counts: Counter[str] = Counter()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            append(session_id)
        except ConflictError:
            counts["conflicts"] += 1
        except Exception as error:  # noqa: BLE001 (counted)
            counts[f"{type(error).__name__}: {error}"[:200]] += 1
        else:
            counts["acknowledged"] += 1
    return {"counts": counts}


def count(contender: Contender, session_id: str) -> dict[str, Any]:
    """Return the number of stored errors."""
    return {"count": contender.count(session_id)}


def peak(contender: Contender, call: str, session_id: str | None) -> dict[str, Any]:
    """Run a call once, and return the peak size of the process in MB before and after it."""
    work = contender.calls()[call]
    before = greatest_size()
    work(session_id) if session_id is not None else work()
    return {"before": before, "after": greatest_size()}


def greatest_size() -> float:
    """Return the peak size of this process in MB.

    On Linux, ``ru_maxrss`` is not used, because a process inherits it from its parent.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 * 1024 if sys.platform == "darwin" else 1024)


DO: dict[str, Callable[..., dict[str, Any]]] = {
    each.__name__: each for each in (about, prepare, fill, measure, hammer, count, peak)
}

if __name__ == "__main__":
    main()
