"""The process of one contender: a request as JSON on each line of standard input, an answer as JSON on each of output.

``python -m benchmarks.worker MODULE:CLASS PLACE``. Nothing but the standard library in here.
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
    sys.stdout = sys.stderr  # whatever a store prints
    contender: Contender = getattr(importlib.import_module(module), name)(sys.argv[2])
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = DO[request.pop("do")](contender, **request)
        except Exception as error:  # noqa: BLE001 (a peer's; it is reported)
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    contender.close()


def about(contender: Contender) -> dict[str, Any]:
    """Tell what it is."""
    return {"name": contender.name, "calls": sorted(contender.calls()), **contender.about()}


def prepare(contender: Contender, entries: int) -> dict[str, Any]:
    """Store a session of that many errors."""
    return {"session_id": contender.prepare(entries)}


def fill(contender: Contender, sessions: int) -> dict[str, Any]:
    """Store sessions until there are that many."""
    contender.fill(sessions)
    return {}


def measure(contender: Contender, call: str, session_id: str | None, times: int) -> dict[str, Any]:
    """Measure single calls, in nanoseconds; what they need is made beforehand."""
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
    """Append for some seconds; count what was acknowledged, refused as a conflict, and what failed otherwise."""
    append = contender.calls()["append"]
    counts: Counter[str] = Counter()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            append(session_id)
        except ConflictError:
            counts["refused"] += 1
        except Exception as error:  # noqa: BLE001 (counted)
            counts[f"{type(error).__name__}: {error}"[:200]] += 1
        else:
            counts["acknowledged"] += 1
    return {"counts": counts}


def count(contender: Contender, session_id: str) -> dict[str, Any]:
    """Tell how many errors are stored."""
    return {"count": contender.count(session_id)}


def peak(contender: Contender, call: str, session_id: str | None) -> dict[str, Any]:
    """Do a call once, and tell the process's greatest size before and after, in MB."""
    work = contender.calls()[call]
    before = greatest_size()
    work(session_id) if session_id is not None else work()
    return {"before": before, "after": greatest_size()}


def greatest_size() -> float:
    """Return the greatest size this process has had, in MB.

    Linux hands ``ru_maxrss`` down from the process that has started this one, however large that was.
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
