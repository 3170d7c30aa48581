"""Report of a run: JSON, Markdown tables, and a plot of cost against length."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

from benchmarks.bench import IN_MEMORY
from benchmarks.contender import CALLS
from benchmarks.targets import FLOORS, TO_FLOOR, Target, reference, targets

mpl.use("Agg")
from matplotlib import pyplot as plt

Figures = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Median, 95th percentile and number of measurements, by contender and by call with length."""


def write(results: Mapping[str, Any], folder: Path) -> None:
    """Write ``results.json``, ``results.md`` and ``growth.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    measured = {
        name: {cell: figures(cells[cell]) for cell in sorted(cells, key=_order) if cells[cell]}
        for name, cells in results["samples"].items()
    }
    medians = {name: {cell: each["median"] for cell, each in cells.items()} for name, cells in measured.items()}
    held = targets(results, medians)
    kept = {key: value for key, value in results.items() if key != "samples"}
    judged = [{**target._asdict(), "met": target.met} for target in held]
    (folder / "results.json").write_text(
        json.dumps({**kept, "targets": judged, "microseconds": measured}, indent=1) + "\n"
    )
    (folder / "results.md").write_text("\n".join(_markdown(results, measured, held)) + "\n")
    _plot(measured, folder / "growth.png")


def figures(taken: list[int]) -> dict[str, float]:
    """Return median and 95th percentile in microseconds, and the number of measurements."""
    ordered = sorted(taken)
    return {
        "median": round(statistics.median(ordered) / 1000, 1),
        "p95": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))] / 1000, 1),
        "times": len(ordered),
    }


def _order(cell: str) -> tuple[int, int]:
    call, length = cell.split()
    return CALLS.index(call), int(length)


def _markdown(results: Mapping[str, Any], measured: Figures, held: list[Target]) -> Iterator[str]:
    machine = results["machine"]
    yield (
        f"Measured {results['date']} with `make bench`, in {results['minutes']} minutes: {machine['system']},"
        f" {machine['cores']} cores, a load of {machine['load']} before, Python {machine['python']}."
        " Microseconds: medians (95th percentile in brackets);"
        " ratios are of medians.\n"
    )
    for name, about in results["about"].items():
        note = f"; {about['note']}" if about.get("note") else ""
        database = f", server {about['database']}" if about.get("database") else ""
        yield f"- {name}: {about['version']}{database}, {about['durability']}{note}"
    for name, why in results["absent"].items():
        yield f"- not measured: {name}: {why.splitlines()[0]}"
    yield from _targets(held)
    yield from _floors(measured)
    yield from _others(results, measured)
    yield from _peers(results, measured)
    yield from _processes(results)
    yield "\n### Memory\n\n| a process that | before | at its greatest |\n|---|---|---|"
    for name, size in results["memory"].items():
        yield f"| {name} | {size['before']:.0f} MB | {size['after']:.0f} MB |"


def _targets(held: list[Target]) -> Iterator[str]:
    missed = [target for target in held if not target.met]
    yield f"\n### Targets\n\n{len(held) - len(missed)} of {len(held)} are met{'; missed are' if missed else ''}\n"
    if missed:
        yield "| | | at most | measured |\n|---|---|---|---|"
        for where, what, most, value in missed:
            yield f"| {where} | {what} | {most:g} | {value:.2f} |"
    flat = [target for target in held if not ("to the floor" in target.what or target.most in {0, 1})]
    if flat:
        yield "\nFlat as it grows:\n\n| | | at most | measured |\n|---|---|---|---|"
        for where, what, most, value in flat:
            yield f"| {where} | {what} | {most:g} | {value:.2f} |"


def _floors(measured: Figures) -> Iterator[str]:
    for index, name in enumerate(FLOORS):
        ours, floor = measured.get(name, {}), measured.get(f"floor {name}", {})
        if not floor:
            continue
        yield f"\n### {name}, against hand-written driver code\n"
        yield "| call, entries or sessions | floor | ours | ratio | target | |\n|---|---|---|---|---|---|"
        for cell, figure in ours.items():
            if cell in floor:
                ratio = figure["median"] / floor[cell]["median"]
                most = TO_FLOOR[cell][index] if cell in TO_FLOOR else None
                judged = "|" if most is None else f"≤ {most} | {'met' if ratio <= most else '**missed**'}"
                yield f"| {_named(cell)} | {_cell(floor[cell])} | {_cell(figure)} | {ratio:.2f} | {judged} |"


def _others(results: Mapping[str, Any], measured: Figures) -> Iterator[str]:
    """Contender of this package that is compared with peers on a database without a floor."""
    names = [name for name, kind in results["kinds"].items() if kind == "ours" and f"floor {name}" not in measured]
    yield "\n### Without a floor\n\n| call, entries or sessions | " + " | ".join(names) + " |"
    yield "|---|" + "---|" * len(names)
    for cell in sorted({cell for name in names for cell in measured.get(name, {})}, key=_order):
        row = [_cell(measured.get(name, {}).get(cell)) for name in names]
        yield f"| {_named(cell)} | " + " | ".join(row) + " |"


def _peers(results: Mapping[str, Any], measured: Figures) -> Iterator[str]:
    peers = [name for name, kind in results["kinds"].items() if kind == "peer"]
    for own in sorted({reference(name) for name in peers}, reverse=True):
        those = [name for name in peers if reference(name) == own]
        if own not in measured:
            continue
        yield f"\n### Other stores, each at its default durability, and this package on {own}\n"
        yield "× is the ratio to the cost of this package. A cell is empty if the store has no such call.\n"
        yield "| call, entries or sessions | ours | " + " | ".join(those) + " |"
        yield "|---|---|" + "---|" * len(those)
        for cell, figure in measured[own].items():
            row = [_named(cell), _cell(figure)]
            for name in those:
                theirs = measured.get(name, {}).get(cell)
                row.append(f"{_cell(theirs)} × {theirs['median'] / figure['median']:.1f}" if theirs else "")
            yield "| " + " | ".join(row) + " |"


def _processes(results: Mapping[str, Any]) -> Iterator[str]:
    yield "\n### Appends of several processes\n"
    yield "| store | processes | session | appends/s | conflicts | failed | lost | twice |"
    yield "|---|---|---|---|---|---|---|---|"
    for each in results["processes"]:
        failed = "; ".join(f"{count} × {what}" for what, count in each["failed"].items()) or "0"
        session = "the same" if each["same"] else "one each"
        yield (
            f"| {each['name']} | {each['processes']} | {session} | {each['per_second']:,.0f} | {each['conflicts']} |"
            f" {failed} | {each['lost']} | {each['duplicated']} |"
        )


def _named(cell: str) -> str:
    call, length = cell.split()
    return f"{call} {int(length):,}"


def _cell(figure: Mapping[str, float] | None) -> str:
    return f"{figure['median']:,.0f} ({figure['p95']:,.0f})" if figure else ""


def _plot(measured: Figures, path: Path) -> None:
    calls = ("append", "get_recent", "get")
    figure, axes = plt.subplots(1, len(calls), figsize=(18, 6), sharey=True)
    floors = {name for name in measured if name.startswith("floor ")}
    ours = {name.removeprefix("floor ") for name in floors} | {"MariaDB", IN_MEMORY}
    # contenders of this package first, with wide lines; each with its floor in the same color
    names = sorted(measured.keys() - floors, key=lambda name: (name not in ours, name))
    colours = dict(zip(names, plt.get_cmap("tab20").colors, strict=False))  # type: ignore[attr-defined, unused-ignore]
    for axis, call in zip(axes, calls, strict=True):
        for name in [*names, *sorted(floors)]:
            cells = measured[name]
            points = [(int(cell.split()[1]), each["median"]) for cell, each in cells.items() if cell.split()[0] == call]
            if points:
                lengths, costs = zip(*points, strict=True)
                floor = name.startswith("floor ")
                style: dict[str, Any] = {"marker": "o", "linewidth": 2.5 if name in ours else 1}
                if floor:
                    style = {"linestyle": "--", "linewidth": 1}
                axis.plot(lengths, costs, label=name, color=colours[name.removeprefix("floor ")], **style)
        axis.set(xscale="log", yscale="log", title=call, xlabel="entries already there")
        axis.grid(visible=True, which="major", alpha=0.3)
    axes[0].set_ylabel("microseconds, median")
    handles, labels = axes[0].get_legend_handles_labels()
    axes[-1].legend(handles, labels, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
