"""What a terminal is given: stored text is anybody's, and may try to move the cursor, to hide, or to pass for more."""

from __future__ import annotations

import json
import unicodedata
from typing import Any, Final

_KEPT: Final = frozenset("\u200c\u200d")
"""Joiners, which scripts and emoji need, and which move nothing."""
_BREAKS: Final = frozenset("\u2028\u2029")
_CONTROLS: Final = 0x20
_DEL: Final = 0x7F


def safe(text: str, *, lines: bool = False) -> str:
    r"""Return text that a terminal shows and does not obey.

    Control characters become their pictures (``␛`` for ESC), and others that are not seen (of a writing direction, of
    a line's end, unassigned ones, surrogates) their escapes, as in ``\u202e``. Printable text stays as it is.

    :param lines: keep line ends and tabs; ``\r\n`` is a line end.
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
    if _CONTROLS <= code < _DEL or character in _KEPT or (lines and character in "\n\t"):
        return character
    if code < _CONTROLS:
        return chr(0x2400 + code)
    if code == _DEL:
        return "\u2421"
    if unicodedata.category(character)[0] == "C" or character in _BREAKS:
        return character.encode("unicode_escape", "surrogatepass").decode("ascii")
    return character
