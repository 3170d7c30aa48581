"""Output and exit codes of the commands.

Stored text is untrusted: on a terminal, it could move the cursor, hide other text, or imitate output of the command.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterable
from dataclasses import asdict, is_dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import typer

from vibeforge_sessions.errors import SchemaState

EXIT_CODES: Final[dict[SchemaState, int]] = {
    "current": 0,
    "empty": 3,
    "behind": 4,
    "ahead": 5,
    "foreign": 6,
    "drifted": 7,
}
UNREADABLE: Final = 8
EXITS: Final = (
    "Exit codes: 0 success, or current schema; 1 failure; 2 wrong usage; schema status: 3 empty, 4 behind, 5 ahead, "
    "6 foreign, 7 drifted; 8 unreadable sessions."
)

UNIT_SECONDS: Final = {"w": 604_800, "d": 86_400, "h": 3_600, "m": 60, "s": 1}
"""Number of seconds in each unit of an age."""
_JOINERS: Final = "\u200c\u200d"
"""Zero-width joiner and non-joiner. Scripts and emoji need them, and they do not move the cursor."""
_PICTURES: Final = {chr(code): chr(0x2400 + code) for code in range(0x20)} | {"\x7f": "\u2421"}


def ask_confirmation() -> bool:
    """Ask for confirmation; return whether the user gave it."""
    typer.echo("Continue? [y/N] ", nl=False, err=True)  # the prompt of typer writes to stdout
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def show(value: Any, lines: Iterable[str] = (), *, as_json: bool = True, err: bool = False) -> None:
    """Print a value as JSON, or else the lines that describe it."""
    for line in [safe_json(value, indent=2)] if as_json else lines:
        typer.echo(line, err=err)


def safe(text: str, *, lines: bool = False) -> str:
    r"""Return text that a terminal displays without executing control sequences.

    Control characters become their pictures (``␛`` for ESC). Other invisible characters (for writing direction and line
    ends, unassigned characters, surrogates) become escapes such as ``\u202e``. Printable text stays unchanged.

    :param lines: keep line ends and tabs. ``\r\n`` becomes ``\n``.
    """
    kept = _JOINERS
    if lines:
        text, kept = text.replace("\r\n", "\n"), f"{_JOINERS}\n\t"
    return "".join(
        character
        if character.isprintable() or character in kept or unicodedata.category(character) == "Zs"
        else _PICTURES.get(character) or character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in text
    )


def safe_json(value: Any, *, indent: int | None = None) -> str:
    """Return JSON in which everything beyond printable ASCII is escaped. `value` may contain dataclasses and times."""
    return json.dumps(value, indent=indent, ensure_ascii=True, default=_plain).replace("\x7f", "\\u007f")


def _plain(value: Any) -> Any:
    if isinstance(value, timedelta):
        return value.total_seconds()
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value.isoformat()


def format_age(length: timedelta) -> str:
    """Return a length of time as text in a single unit: days, hours, minutes or seconds."""
    seconds = int(length.total_seconds())
    unit = next((unit for unit in "dhm" if seconds >= UNIT_SECONDS[unit]), "s")
    return f"{seconds // UNIT_SECONDS[unit]}{unit}"


def clock(time: datetime) -> str:
    """Return a time as text to the second, without a UTC offset if the time is in UTC."""
    return time.isoformat(" ", "seconds").removesuffix("+00:00")
