"""Escaping of stored text for a terminal.

Stored text is untrusted: it could move the cursor, hide other text, or imitate output of the command.
"""

from __future__ import annotations

import json
import unicodedata
from typing import Any, Final

_JOINERS: Final = frozenset("\u200c\u200d")
"""Joiners. Scripts and emoji need them, and they do not move the cursor."""
_BREAKS: Final = frozenset("\u2028\u2029")
_FIRST_PRINTABLE: Final = 0x20
_DEL: Final = 0x7F


def safe(text: str, *, lines: bool = False) -> str:
    r"""Return text that a terminal displays without executing control sequences.

    Control characters become their pictures (``␛`` for ESC). Other invisible characters (of the writing direction, of
    line ends, unassigned characters, surrogates) become escapes such as ``\u202e``. Printable text stays unchanged.

    :param lines: keep line ends and tabs. ``\r\n`` is a line end.
    """
    if lines:
        text = text.replace("\r\n", "\n")
    if text.isascii() and text.isprintable():
        return text
    return "".join([_safe(character, lines=lines) for character in text])


def safe_json(value: Any, *, indent: int | None = None) -> str:
    """Return JSON in which everything beyond printable ASCII is escaped."""
    return json.dumps(value, indent=indent, ensure_ascii=True).replace("\x7f", "\\u007f")


def _safe(character: str, *, lines: bool) -> str:
    code = ord(character)
    if _FIRST_PRINTABLE <= code < _DEL or character in _JOINERS or (lines and character in "\n\t"):
        return character
    if code < _FIRST_PRINTABLE:
        return chr(0x2400 + code)
    if code == _DEL:
        return "\u2421"
    if unicodedata.category(character)[0] == "C" or character in _BREAKS:
        return character.encode("unicode_escape", "surrogatepass").decode("ascii")
    return character
