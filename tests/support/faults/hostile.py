"""Hostile values, as an attacker or a hostile class would pass them: `HOSTILE`, by name, and strategies for them.

All texts contain `MARK`, which tests look for in shown texts. Strategies draw the names of values, because some values
are too large to be printed.
"""

from __future__ import annotations

import collections
import decimal
import fractions
import itertools
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta, tzinfo
from enum import Enum, IntEnum, StrEnum
from typing import Any
from unittest import mock

from hypothesis import strategies as st

MARK = "5ecret!"


class HostileClassError(Exception):
    """The error of hostile classes, which must not reach the caller of a repository."""


def _raise(*_: object, **__: object) -> Any:
    raise HostileClassError(MARK)


def _shown(_: object) -> str:
    return f"<{MARK}>"  # the report of a failed test calls it


# methods that create objects, and methods that the interpreter and the report of a failed test need
_KEPT = {"__new__", "__init__", "__init_subclass__", "__subclasshook__", "__getattribute__", "__class__", "__doc__"}
_KEPT |= {"__repr__", "__sizeof__", "__dir__", "__del__", "__class_getitem__", "__dict__", "__module__"}
_OTHER_METHODS = [
    "__bool__",
    "__eq__",
    "__hash__",
    "__len__",
    "__iter__",
    "__contains__",
    "__getitem__",
    "__str__",
    "__format__",
]
_OTHER_METHODS += [
    "__lt__",
    "__le__",
    "__gt__",
    "__ge__",
    "__ne__",
    "__int__",
    "__index__",
    "__float__",
    "__add__",
    "__call__",
]


def raising(base: type) -> type[Any]:
    """Return a subclass whose methods raise, with the exception of those in `_KEPT`."""
    names = {name for name in dir(base) if callable(getattr(base, name, None))} | set(_OTHER_METHODS)
    return type("Raising", (base,), dict.fromkeys(names - _KEPT, _raise) | {"__repr__": _shown})


class LyingText(str):
    __slots__ = ()

    def __str__(self) -> str:
        return f"{MARK}'; DROP TABLE vibeforge_sessions; --\0"

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    def __hash__(self) -> int:
        return 1

    def __len__(self) -> int:
        return 3

    def encode(self, *_: object) -> bytes:
        return MARK.encode()


class LyingInteger(int):
    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 1

    def __le__(self, other: object) -> bool:
        return True

    __lt__ = __ge__ = __gt__ = __le__

    def __int__(self) -> int:
        return -(2**70)

    __index__ = __int__

    def __add__(self, other: object) -> int:
        return -(2**70)


class LyingDict(dict[str, Any]):
    """A dict with different content at every access."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.shown = 0

    def items(self) -> Any:
        self.shown += 1
        return [("a", 1)] if self.shown == 1 else [("b", {MARK, 1}), (2, float("nan"))]

    def keys(self) -> Any:
        return [1, 2]

    def __iter__(self) -> Any:
        return iter([MARK, b"bytes"])


class LyingList(list[Any]):
    """A list with different content at every access."""

    def __iter__(self) -> Any:
        return iter([MARK, {1, 2}])

    def __len__(self) -> int:
        return -1 & 0xFF

    def __getitem__(self, _: Any) -> Any:
        return {MARK}


class LyingClass:
    """An object whose ``__class__`` is another class."""

    def __init__(self, claimed: type) -> None:
        self.claimed = claimed

    @property
    def __class__(self) -> Any:
        return self.claimed

    @__class__.setter
    def __class__(self, _: Any) -> None:
        raise HostileClassError


class NoClass:
    @property
    def __class__(self) -> Any:
        raise HostileClassError

    @__class__.setter
    def __class__(self, _: Any) -> None:
        raise HostileClassError


class BadMapping(Mapping[str, Any]):
    def __getitem__(self, key: str) -> Any:
        raise HostileClassError(MARK)

    def __iter__(self) -> Any:
        raise HostileClassError(MARK)

    def __len__(self) -> int:
        return 1


class BadZone(tzinfo):
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def utcoffset(self, _: datetime | None) -> Any:
        return _raise() if self.answer is None else self.answer

    dst = tzname = utcoffset


class Words(StrEnum):
    FORMAT = f"{MARK}%s"


class Numbers(IntEnum):
    ONE = 1


class Things(Enum):
    MARKED = MARK


class MyTime(datetime):
    def isoformat(self, *_: object, **__: object) -> str:
        return MARK

    def astimezone(self, _: object = None) -> Any:
        return MARK


def nested(depth: int, wrap: Callable[[Any], Any]) -> Any:
    """Return a value with this depth of nesting."""
    value: Any = MARK
    for _ in range(depth):
        value = wrap(value)
    return value


def _self_containing() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


TEXTS = {
    "SQL": f"{MARK}'; DROP TABLE vibeforge_sessions; --",
    "more SQL": f'{MARK}" OR 1=1 UNION SELECT * FROM vibeforge_sessions -- /*',
    "percent": f"%s %(session_id)s %d %% {MARK}",
    "braces": f"{{}} {{0}} {{0.__class__}} {{MARK}} {MARK}",
    "dollars": f"${{HOME}} $1 $$ {MARK}",
    "parameters": f":session_id :1 ? ?1 @p {MARK}",
    "backslashes": f"\\ \\' \\\" \\u0000 \\x00 {MARK}",
    "NUL": f"{MARK}\0{MARK}",
    "control characters": f"{MARK}\x1b[31m\r\n\t\x7f\x85",
    "a surrogate": f"{MARK}\ud800",
    "a pair of surrogates": f"{MARK}\ud83d\ude00",
    "bidirectional": f"{MARK}\u202e\u2066",
    "not characters": f"{MARK}\ufffe\uffff\U0010ffff",
    "HTML": f"<script>{MARK}</script>",
    "a path": f"../../{MARK}/\u2028",
    "blanks": " \t ",
    "trailing space": "there ",
    "another case": "THERE",
    "nothing": "",
    "long": f"{MARK} {'x' * 100_000}",
    "as long as an id": "x" * 64,
    "longer than an id": "x" * 65,
    "digits of another script": "٣" * 5,
}
HOSTILE: dict[str, Any] = TEXTS | {
    "None": None,
    "True": True,
    "False": False,
    "0": 0,
    "-1": -1,
    "2**31": 2**31,
    "2**63 - 1": 2**63 - 1,
    "2**63": 2**63,
    "-2**63": -(2**63),
    "many digits": 10**4300,
    "a million digits": 1 << 3_400_000,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "-infinity": float("-inf"),
    "-0.0": -0.0,
    "1.5": 1.5,
    "1e308": 1e308,
    "a complex number": 1j,
    "a decimal": decimal.Decimal("NaN"),
    "a fraction": fractions.Fraction(1, 3),
    "bytes": MARK.encode() + b"\xff\0",
    "bytearray": bytearray(b"there"),
    "memoryview": memoryview(b"there"),
    "an object": object(),
    "a class": str,
    "a function": lambda *_: MARK,
    "a module": itertools,
    "a generator": (MARK for _ in range(3)),
    "without end": itertools.repeat(MARK),
    "a range without end": range(2**62),
    "a set": {MARK, 1},
    "a deque": collections.deque([MARK]),
    "a tuple": (MARK, 1),
    "a list": [MARK],
    "a dict": {"key": MARK},
    "a dict with other keys": {1: MARK, None: 2, (1, 2): 3, b"b": 4},
    "many keys": {f"key{number}": MARK for number in range(5000)},
    "many wrong entries": [object()] * 5000,
    "a defaultdict": collections.defaultdict(list, {"key": [MARK]}),
    "a mapping": collections.ChainMap({"error_message": MARK}),
    "a date": date(2026, 1, 1),
    "a naive time": datetime(2026, 1, 1),  # noqa: DTZ001 (the value must be naive)
    "the first time": datetime.min.replace(tzinfo=UTC),
    "the last time": datetime.max.replace(tzinfo=UTC),
    "a time of another class": MyTime(2026, 1, 1, tzinfo=UTC),
    "a zone that raises": datetime(2026, 1, 1, tzinfo=BadZone(None)),
    "a zone of texts": datetime(2026, 1, 1, tzinfo=BadZone(MARK)),
    "a zone of days": datetime(2026, 1, 1, tzinfo=BadZone(timedelta(days=9))),
    "the text of a time": "2026-01-01T00:00:00+00:00",
    "an enum of texts": Words.FORMAT,
    "an enum of integers": Numbers.ONE,
    "an enum": Things.MARKED,
    "lists 201 deep": nested(201, lambda value: [value]),
    "lists 100,000 deep": nested(100_000, lambda value: [value]),
    "dicts 100,000 deep": nested(100_000, lambda value: {"key": value}),
    "tuples 100,000 deep": nested(100_000, lambda value: (value,)),
    "a list that holds itself": _self_containing(),
    "lists without end": nested(200, lambda value: [value, value]),
    "dicts without end": nested(200, lambda value: {"a": value, "b": value}),
    "tuples without end": nested(200, lambda value: (value, value)),
    "a mock": mock.MagicMock(name=MARK),
    "a mock of a text": mock.MagicMock(spec=str),
    "a mock of an integer": mock.MagicMock(spec=int),
    "a text that raises": raising(str)("there"),
    "another text that raises": raising(str)(f"{MARK}\0"),
    "an integer that raises": raising(int)(1),
    "a float that raises": raising(float)(1.5),
    "a list that raises": raising(list)([MARK]),
    "a tuple that raises": raising(tuple)((MARK,)),
    "a dict that raises": raising(dict)({"key": MARK}),
    "bytes that raise": raising(bytes)(MARK.encode()),
    "an object that raises": raising(object)(),
    "a time that raises": raising(datetime)(2026, 1, 1, tzinfo=UTC),
    "a text that lies": LyingText("there"),
    "an integer that lies": LyingInteger(1),
    "a list that lies": LyingList([1]),
    "a dict that lies": LyingDict({"a": 1}),
    "a mapping that raises": BadMapping(),
    "an object that claims to be a text": LyingClass(str),
    "an object that claims to be an integer": LyingClass(int),
    "an object that claims to be a dict": LyingClass(dict),
    "an object that claims to be a list": LyingClass(list),
    "an object that claims to be a time": LyingClass(datetime),
    "an object without a class": NoClass(),
}

ENDLESS = {name for name in HOSTILE if name.endswith("s without end")}
"""Values whose ``str()`` does not end in practice, which is the responsibility of the caller."""
picks = st.sampled_from(sorted(HOSTILE)) | st.text(st.characters(), max_size=30).map(lambda text: MARK + text)
"""Names of hostile values, and texts that are used directly."""


def value_of(pick: str) -> Any:
    """Return the hostile value with this name, or the text itself."""
    return HOSTILE.get(pick, pick)
