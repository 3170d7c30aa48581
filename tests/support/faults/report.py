"""Results of the scripts in this folder, as JSON and Markdown next to the benchmark results."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import sqlalchemy
from rich.console import Console

from tests.support import ROOT

RESULTS: Final = ROOT / "benchmarks" / "results"


def machine() -> dict[str, Any]:
    """Return the properties of the machine that the figures depend on."""
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "sqlalchemy": sqlalchemy.__version__,
        "system": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
    }


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return [
        f"| {' | '.join(head)} |",
        "|" + "---|" * len(head),
        *(f"| {' | '.join(map(str, row))} |" for row in rows),
    ]


def rounds(figures: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the report lines about rounds of writers, from `Findings.as_figures`.

    Retries include conflicts and stale updates, although a stale update is an answer to `modify_session` and not a
    fault.
    """
    counted = ("acknowledged", "lost", "twice", "wrong", "failed", "unknown", "retried", "stale", "conflicts")
    yield from table(
        ("round", *counted, "longest silence", "longest call"),
        [
            (number, *(each[name] for name in counted), f"{each['silence']:.1f} s", f"{each['longest call']:.1f} s")
            for number, each in enumerate(figures, 1)
        ],
    )
    violations = [violation for each in figures for violation in each["violations"]]
    if violations:
        yield from ("", f"{len(violations)} violations, the first of which:", "")
        yield from (f"- {violation}" for violation in violations[:10])
    for title, name in (("Calls", "calls"), ("Retried", "retries"), ("Not done", "texts")):
        total: Counter[str] = sum((Counter(each[name]) for each in figures), Counter())
        if total:
            yield from ("", f"{title}:", "", *(f"- {what}: {number}" for what, number in total.most_common()))


def write(name: str, results: Mapping[str, Any], lines: Iterable[str], folder: Path | None) -> None:
    """Print the report; write it and the figures to a folder if one is given."""
    where = results["machine"]
    head = (
        f"Measured {where['date']}: {where['system']}, {where['cores']} cores, load {where['load']} before, Python"
        f" {where['python']}, SQLAlchemy {where['sqlalchemy']}."
    )
    text = "\n".join([head, "", *lines]) + "\n"
    Console(width=200).print(text, markup=False, highlight=False, soft_wrap=True)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
        (folder / f"{name}.md").write_text(text)
