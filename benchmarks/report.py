"""What was measured, as JSON, as Markdown tables, and as a picture of cost against length."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

FLOORS: Final = ("SQLite FULL", "SQLite NORMAL", "PostgreSQL")
TARGETS: Final[dict[str, tuple[float, float, float]]] = {
    "create 100": (1.5, 2.0, 1.3),
    **{f"append {length}": (1.5, 2.5, 1.4) for length in (10, 100, 1_000, 10_000)},
    "update_phase 100": (1.6, 3.0, 1.4),
    "get 10": (2.0, 2.0, 1.4),
    "get 1000": (1.2, 1.2, 1.2),
    "get 10000": (1.2, 1.2, 1.2),
    **{f"get_recent {length}": (2.0, 2.0, 1.4) for length in (10, 100, 1_000, 10_000)},
    "list_page 100000": (2.0, 2.0, 1.5),
}
"""The greatest ratio to the floor, for each of `FLOORS`."""


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write(results: Mapping[str, Any], folder: Path) -> None:
    """Write ``results.json`` (medians and p95, and everything else), ``results.md`` and ``growth.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    summary = {
        name: {cell: figures(taken) for cell, taken in cells.items() if taken}
        for name, cells in results["samples"].items()
    }
    kept = {key: value for key, value in results.items() if key != "samples"}
    (folder / "results.json").write_text(json.dumps({**kept, "microseconds": summary}, indent=1) + "\n")
    (folder / "results.md").write_text("\n".join(_markdown(results, summary)) + "\n")
    _plot(summary, folder / "growth.png")


def figures(taken: list[int]) -> dict[str, float]:
    """Return median, 95th percentile (in microseconds) and how often it was measured."""
    ordered = sorted(taken)
    return {
        "median": statistics.median(ordered) / 1000,
        "p95": ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))] / 1000,
        "times": len(ordered),
    }


def _markdown(results: Mapping[str, Any], summary: Mapping[str, Any]) -> Iterator[str]:
    machine = results["machine"]
    yield f"Measured {results['date']} with `make bench`: {machine['system']}, {machine['cores']} cores, Python"
    yield f"{machine['python']}. Microseconds: medians (95th percentile in brackets); ratios are of medians.\n"
    for name, about in results["about"].items():
        note = f"; {about['note']}" if about.get("note") else ""
        database = f", server {about['database']}" if about.get("database") else ""
        yield f"- {name}: {about['version']}{database}, {about['durability']}{note}"
    for name, why in results["absent"].items():
        yield f"- not measured: {name}: {why.splitlines()[0]}"
    yield from _floors(summary)
    yield from _flat(summary)
    yield from _peers(summary)
    yield from _processes(results)
    yield "\n### Memory\n\n| process that | before | peak |\n|---|---|---|"
    for name, size in results["memory"].items():
        yield f"| {name} | {size['before']:.0f} MB | {size['after']:.0f} MB |"


def _floors(summary: Mapping[str, Any]) -> Iterator[str]:
    there = [name for name in FLOORS if name in summary and f"floor {name}" in summary]
    if not there:
        return
    yield "\n### Against hand-written driver code\n"
    yield "| call, entries | " + " | ".join(f"{name}: floor | ours | ratio" for name in there) + " |"
    yield "|---|" + "---|" * (3 * len(there))
    for cell in summary[there[0]]:
        row = [cell]
        for name in there:
            ours, floor = summary[name].get(cell), summary[f"floor {name}"].get(cell)
            if ours is None or floor is None:
                row += ["", "", ""]
                continue
            ratio = ours["median"] / floor["median"]
            target = TARGETS.get(cell)
            most = target[FLOORS.index(name)] if target else None
            judged = "" if most is None else f" ≤ {most}" if ratio <= most else f" **> {most}**"
            row += [_cell(floor), _cell(ours), f"{ratio:.2f}{judged}"]
        yield "| " + " | ".join(row) + " |"


def _flat(summary: Mapping[str, Any]) -> Iterator[str]:
    yield "\n### Flat as it grows\n"
    yield "| | append, 10,000 : 10 | list_page, 100,000 : 1,000 | list_errors, dearest : cheapest |"
    yield "|---|---|---|---|"
    for name, cells in summary.items():
        if name in FLOORS or name in {"MariaDB", "in memory"}:
            slices = [each["median"] for cell, each in cells.items() if cell.startswith("list_errors")]
            ratios = [
                _ratio(cells, "append 10000", "append 10"),
                _ratio(cells, "list_page 100000", "list_page 1000"),
                f"{max(slices) / min(slices):.2f}" if slices else "",
            ]
            yield f"| {name} | " + " | ".join(ratios) + " |"


def _peers(summary: Mapping[str, Any]) -> Iterator[str]:
    ours = [*FLOORS, "MariaDB", "in memory"]
    peers = [name for name in summary if name not in ours and not name.startswith("floor")]
    if not peers:
        return
    yield "\n### Beside other stores\n\nEach at its own default durability; × says how many times ours it takes.\n"
    for place, own in (("folder", "SQLite FULL"), ("server", "PostgreSQL")):
        those = [name for name in peers if ("PostgreSQL" in name) == (place == "server")]
        if not those or own not in summary:
            continue
        yield f"| call, entries | ours, {own} | " + " | ".join(those) + " |"
        yield "|---|---|" + "---|" * len(those)
        for cell, figure in summary[own].items():
            row = [cell, _cell(figure)]
            for name in those:
                theirs = summary[name].get(cell)
                row.append(f"{_cell(theirs)} × {theirs['median'] / figure['median']:.1f}" if theirs else "")
            yield "| " + " | ".join(row) + " |"
        yield ""


def _processes(results: Mapping[str, Any]) -> Iterator[str]:
    yield "\n### Processes appending at once\n"
    yield "| store | processes | session | appends/s | refused | failed | lost | twice |"
    yield "|---|---|---|---|---|---|---|---|"
    for each in results["processes"]:
        failed = "; ".join(f"{count} × {what}" for what, count in each["failed"].items()) or "0"
        session = "the same" if each["same"] else "one each"
        yield (
            f"| {each['name']} | {each['processes']} | {session} | {each['per_second']:,.0f} | {each['refused']} |"
            f" {failed} | {each['lost']} | {each['duplicated']} |"
        )


def _cell(figure: Mapping[str, float]) -> str:
    return f"{figure['median']:,.0f} ({figure['p95']:,.0f})"


def _ratio(cells: Mapping[str, Any], above: str, below: str) -> str:
    if above not in cells or below not in cells:
        return ""
    return f"{cells[above]['median'] / cells[below]['median']:.2f}"


def _plot(summary: Mapping[str, Any], path: Path) -> None:
    try:
        import matplotlib  # noqa: ICN001, PLC0415 (an extra)
    except ImportError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 (after the backend is chosen)

    calls = ("append", "get_recent", "get")
    figure, axes = plt.subplots(1, len(calls), figsize=(18, 6), sharey=True)
    for axis, call in zip(axes, calls, strict=True):
        for name, cells in summary.items():
            points = [(int(cell.split()[1]), each["median"]) for cell, each in cells.items() if cell.split()[0] == call]
            if points:
                lengths, costs = zip(*sorted(points), strict=True)
                style = {"linestyle": "--", "linewidth": 1} if name.startswith("floor") else {"marker": "o"}
                axis.plot(lengths, costs, label=name, **style)
        axis.set(xscale="log", yscale="log", title=call, xlabel="entries already there")
        axis.grid(visible=True, which="major", alpha=0.3)
    axes[0].set_ylabel("microseconds, median")
    axes[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
