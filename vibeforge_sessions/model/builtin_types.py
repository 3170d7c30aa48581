"""Normalization of values to exact built-in types.

A caller's value may be an instance of a subclass that overrides comparison, iteration or ``str``. Such a method may
raise, or return a different result at each call. Values are normalized to exact built-in types once, before validation,
so that the value that is stored is the value that was validated. Code that receives a normalized value can rely on its
``type``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

_CONVERSIONS: Final[dict[type, Callable[[Any], Any]]] = {
    str: str.__str__,
    bool: bool,  # before int, of which it is a subclass
    int: int.__int__,
    float: float.__float__,
    list: list.copy,
    tuple: lambda value: list(tuple.__iter__(value)),
    dict: lambda value: dict(dict.items(value)),
}


def exact(value: Any) -> Any:
    """Return an instance of a subclass of a built-in JSON type as that type, and any other value unchanged.

    Lists and dicts are copied. A tuple becomes a list.
    """
    kind = type(value)
    convert = _CONVERSIONS.get(kind)
    if convert is None:
        convert = next((each for base, each in _CONVERSIONS.items() if issubclass(kind, base)), None)
    return value if convert is None else convert(value)


def exact_dict(value: Any) -> dict[Any, Any] | None:
    """Return a copy of a mapping as an exact `dict`; None if `value` is not a mapping, or if reading it raises."""
    try:
        if issubclass(type(value), dict):
            return dict(dict.items(value))
        return dict(value) if issubclass(type(value), Mapping) else None
    except Exception:  # noqa: BLE001 (a caller's mapping or key may raise anything)
        return None
