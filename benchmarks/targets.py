"""Targets: ratios of medians of one run. A benchmark reports missed targets, and does not fail."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

FLOORS: Final = ("SQLite FULL", "SQLite NORMAL", "PostgreSQL")
TO_FLOOR: Final[dict[str, tuple[float, float, float]]] = {
    "create 100": (1.5, 2.0, 1.3),
    **{f"append {length}": (1.5, 2.5, 1.4) for length in (10, 100, 1_000, 10_000)},
    "update_phase 100": (1.6, 3.0, 1.4),
    "get 10": (2.0, 2.0, 1.4),
    "get 1000": (1.2, 1.2, 1.2),
    "get 10000": (1.2, 1.2, 1.2),
    **{f"get_recent {length}": (2.0, 2.0, 1.4) for length in (10, 100, 1_000, 10_000)},
    "list_page 100000": (2.0, 2.0, 1.5),
}
"""Maximum ratio to the floor, for each of `FLOORS`."""
FLAT: Final = (("append 10000", "append 10", 1.15), ("list_page 100000", "list_page 1000", 1.5))
"""Calls that must not cost much more than a smaller call."""
SLICES: Final = ("list_errors_start", "list_errors_middle", "list_errors_end")
MOST_BETWEEN_SLICES: Final = 1.2

Medians = Mapping[str, Mapping[str, float]]
"""Measurements by contender, and by call with length."""


class Target(NamedTuple):
    """Target, and its measured value."""

    where: str
    what: str
    most: float
    value: float

    @property
    def met(self) -> bool:
        """Whether the target is met."""
        return self.value <= self.most


def targets(results: Mapping[str, Any], medians: Medians) -> list[Target]:
    """Return each target for which this run has figures."""
    return [*_to_floor(medians), *_flat(results, medians), *_peers(results, medians), *_counted(results)]


def reference(peer: str) -> str:
    """Return the contender of this package that a peer is compared with: the same database, default durability."""
    return "PostgreSQL" if "PostgreSQL" in peer else "SQLite FULL"


def _to_floor(medians: Medians) -> Iterator[Target]:
    for index, name in enumerate(FLOORS):
        floor = medians.get(f"floor {name}", {})
        for cell, most in TO_FLOOR.items():
            if cell in floor and cell in medians[name]:
                yield Target(name, f"{cell}, to the floor", most[index], medians[name][cell] / floor[cell])


def _flat(results: Mapping[str, Any], medians: Medians) -> Iterator[Target]:
    for name, kind in results["kinds"].items():
        if kind != "ours":
            continue
        cells = medians.get(name, {})
        for large, small, most in FLAT:
            if large in cells and small in cells:
                yield Target(name, f"{large}, to {small}", most, cells[large] / cells[small])
        slices = [cost for cell, cost in cells.items() if cell.split()[0] in SLICES]
        if slices:
            yield Target(name, "list_errors, dearest to cheapest", MOST_BETWEEN_SLICES, max(slices) / min(slices))


def _peers(results: Mapping[str, Any], medians: Medians) -> Iterator[Target]:
    """Yield the targets of each call: less time than each peer."""
    for name, kind in results["kinds"].items():
        if kind != "peer":
            continue
        ours = medians.get(reference(name), {})
        for cell, cost in medians.get(name, {}).items():
            if cell in ours:
                yield Target(reference(name), f"{cell}, to {name}", 1.0, ours[cell] / cost)


def _counted(results: Mapping[str, Any]) -> Iterator[Target]:
    """Yield the targets of concurrent appends: none is lost, stored twice, or rejected."""
    for each in results["processes"]:
        if results["kinds"][each["name"]] == "ours":
            session = "one session" if each["same"] else "one each"
            wrong = each["conflicts"] + each["lost"] + each["duplicated"] + sum(each["failed"].values())
            yield Target(each["name"], f"{each['processes']} processes, {session}: lost, twice, conflicts", 0, wrong)
