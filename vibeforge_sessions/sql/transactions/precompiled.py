"""Statements compiled once, and what becomes of values on their way to the driver and back."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Dialect
from sqlalchemy.types import NullType

Parameters = Mapping[str, Any]
Rows = Sequence[Sequence[Any]]
Processor = Callable[[Any], Any]


def _picking(names: Sequence[str]) -> Callable[[Parameters], tuple[Any, ...]]:
    if len(names) > 1:
        return operator.itemgetter(*names)
    return lambda values: tuple(values[name] for name in names)  # of a single one, itemgetter makes no tuple


class Compiled:
    """A statement as the driver takes it, and what its types do with values on their way in and out."""

    __slots__ = ("_constants", "_in", "_out", "_pick", "text")

    def __init__(self, statement: Any, dialect: Dialect, schemas: Any, *, has_rows: bool) -> None:
        compiled = statement.compile(
            dialect=dialect, schema_translate_map=schemas, render_schema_translate=schemas is not None
        )
        self.text = str(compiled)
        names: Sequence[str] = compiled.positiontup or list(compiled.bind_names.values())
        self._pick = _picking(names) if compiled.positional else None
        binds = {name: compiled.binds[name] for name in names}
        if untyped := [name for name, bind in binds.items() if isinstance(bind.type, NullType)]:
            raise AssertionError(f"parameters without a type would be stored as the driver likes: {', '.join(untyped)}")
        self._constants = {name: bind.value for name, bind in binds.items() if not bind.required}
        into = {name: bind.type.dialect_impl(dialect).bind_processor(dialect) for name, bind in binds.items()}
        self._in: list[tuple[str, Processor]] = [(name, each) for name, each in into.items() if each is not None]
        # not asked of a statement without rows: it would remember, and one made from it with RETURNING believe it
        columns = statement.exported_columns if has_rows else ()
        out = [column.type.dialect_impl(dialect).result_processor(dialect, None) for column in columns]
        self._out: list[tuple[int, Processor]] = [(index, each) for index, each in enumerate(out) if each is not None]

    def given(self, parameters: Parameters) -> Any:
        """Return the parameters in the driver's order and types."""
        values = {**self._constants, **parameters}
        for name, process in self._in:
            values[name] = process(values[name])
        return values if self._pick is None else self._pick(values)

    @property
    def converts(self) -> bool:
        """Tell whether the rows need anything done to them."""
        return bool(self._out)

    def one(self, row: Sequence[Any]) -> Sequence[Any]:
        """Return a row in Python's types."""
        if not self._out:
            return row
        values = list(row)
        for index, process in self._out:
            values[index] = process(values[index])
        return values

    def taken(self, rows: Rows) -> list[Sequence[Any]]:
        """Return the rows by column, in Python's types; nothing for no rows."""
        columns: list[Sequence[Any]] = list(zip(*rows, strict=True))
        if columns:
            for index, process in self._out:
                columns[index] = list(map(process, columns[index]))
        return columns
