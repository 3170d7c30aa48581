"""Escaping of stored text for a terminal.

Stored text is untrusted: it could move the cursor, hide other text, or imitate output of the command.
"""

from __future__ import annotations

import json
import unicodedata
from dataclasses import asdict, is_dataclass
from datetime import timedelta
from typing import Any, Final

_JOINERS: Final = "\u200c\u200d"
"""Joiners. Scripts and emoji need them, and they do not move the cursor."""
_PICTURES: Final = {chr(code): chr(0x2400 + code) for code in range(0x20)} | {"\x7f": "\u2421"}


def safe(text: str, *, lines: bool = False) -> str:
    r"""Return text that a terminal displays without executing control sequences.

    Control characters become their pictures (``␛`` for ESC). Other invisible characters (of the writing direction, of
    line ends, unassigned characters, surrogates) become escapes such as ``\u202e``. Printable text stays unchanged.

    :param lines: keep line ends and tabs. ``\r\n`` is a line end.
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
    """Return JSON in which everything beyond printable ASCII is escaped. It may contain dataclasses and times."""
    return json.dumps(value, indent=indent, ensure_ascii=True, default=_plain).replace("\x7f", "\\u007f")


def _plain(value: Any) -> Any:
    if isinstance(value, timedelta):
        return value.total_seconds()
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value.isoformat()
