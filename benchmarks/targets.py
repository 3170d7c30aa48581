"""What the figures are held to: ratios of medians of one run. A benchmark reports what is missed, and does not fail."""

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
"""The greatest ratio to the floor, for each of `FLOORS`."""
FLAT: Final = (("append 10000", "append 10", 1.15), ("list_page 100000", "list_page 1000", 1.5))
"""What must not cost much more than something smaller."""
SLICES: Final = ("list_errors_start", "list_errors_middle", "list_errors_end")
MOST_BETWEEN_SLICES: Final = 1.2

Medians = Mapping[str, Mapping[str, float]]
"""By contender, and by call and length."""


class Target(NamedTuple):
    """One target, and what was measured."""

    where: str
    what: str
    most: float
    value: float

    @property
    def met(self) -> bool:
        """Whether it is met."""
        return self.value <= self.most


def targets(results: Mapping[str, Any], medians: Medians) -> list[Target]:
    """Return every target that this run can tell something about."""
    return [*_to_floor(medians), *_flat(results, medians), *_peers(results, medians), *_counted(results)]


def reference(peer: str) -> str:
    """Return which of ours a peer is measured against: the default durability of the same kind of database."""
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
    """Every call is to be quicker than every peer's."""
    for name, kind in results["kinds"].items():
        if kind != "peer":
            continue
        ours = medians.get(reference(name), {})
        for cell, cost in medians.get(name, {}).items():
            if cell in ours:
                yield Target(reference(name), f"{cell}, to {name}", 1.0, ours[cell] / cost)


def _counted(results: Mapping[str, Any]) -> Iterator[Target]:
    """Nothing is lost, stored twice, or refused."""
    for each in results["processes"]:
        if results["kinds"][each["name"]] == "ours":
            session = "one session" if each["same"] else "one each"
            wrong = each["refused"] + each["lost"] + each["duplicated"] + sum(each["failed"].values())
            yield Target(each["name"], f"{each['processes']} processes, {session}: lost, twice, refused", 0, wrong)
