"""Execution of precompiled statements on the driver's connection, which bypasses an engine's events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Engine, Executable, PoolProxiedConnection

from vibeforge_sessions.sql import fork_safety
from vibeforge_sessions.sql.dialects.base import LEVEL_CHANGED
from vibeforge_sessions.sql.transactions.error_translation import as_sqlalchemys
from vibeforge_sessions.sql.transactions.executor import Executor
from vibeforge_sessions.sql.transactions.precompiled import Compiled, Parameters, Rows

Known = dict[object, Compiled]

SCHEMAS: Final = "schema_translate_map"
_MOST: Final = 1_000
"""Compiled statements that are kept for an engine."""


class OnTheDriver(Executor):
    """Statements compiled once, run on the pooled connection's driver.

    :param known: the engine's statements that have been compiled so far; grows.
    """

    __slots__ = ("_driver", "_known", "_pooled", "_schemas")

    def __init__(self, engine: Engine, pooled: PoolProxiedConnection, known: Known) -> None:
        super().__init__(engine.dialect)
        self._schemas = engine.get_execution_options().get(SCHEMAS)
        self._pooled = pooled
        self._driver: Any = pooled.dbapi_connection
        self._known = known

    @property
    def driver(self) -> Any:
        return self._driver

    @property
    def pooled(self) -> PoolProxiedConnection:
        return self._pooled

    @property
    def own_connection(self) -> Any:
        return self.dialect.get_driver_connection(self._driver)

    @property
    def info(self) -> dict[Any, Any]:
        return self._pooled.info

    def begin(self, *, write: bool, at_once: bool) -> bool:
        fork_safety.check_file(self.info)
        self._pooled.info[LEVEL_CHANGED] = True  # before it is: the pool sets it back, however this call ends
        return self.database.begin_on_driver(self.dialect, self._driver, write=write, at_once=at_once)

    def commit(self) -> None:
        self._driver.commit()

    def rollback(self) -> None:
        try:
            self._driver.rollback()
        except BaseException as error:  # whatever it is, this connection is of no more use
            self.give_up()
            if not isinstance(error, Exception):
                raise

    def give_up(self) -> None:
        if self._pooled.is_valid:
            self._pooled.invalidate()

    def close(self) -> None:
        self._pooled.close()

    def rows(self, statement: Executable, parameters: Parameters) -> Rows:
        compiled, rows = self._fetch(statement, parameters)
        return list(zip(*compiled.taken(rows), strict=True)) if compiled.converts and rows else rows

    def columns(self, statement: Executable, parameters: Parameters) -> Rows:
        compiled, rows = self._fetch(statement, parameters)
        return compiled.taken(rows)

    def row(self, statement: Executable, parameters: Parameters) -> Sequence[Any] | None:
        compiled, rows = self._fetch(statement, parameters)
        return compiled.one(rows[0]) if rows else None

    def _fetch(self, statement: Executable, parameters: Parameters) -> tuple[Compiled, Rows]:
        compiled = self._compiled(statement, has_rows=True)
        cursor = self._driver.cursor()
        try:
            cursor.execute(compiled.text, compiled.given(parameters))
            return compiled, cursor.fetchall()
        finally:
            cursor.close()

    def write(self, statement: Executable, parameters: Sequence[Parameters]) -> int:
        compiled = self._compiled(statement, has_rows=False)
        cursor = self._driver.cursor()
        try:
            if len(parameters) == 1:
                cursor.execute(compiled.text, compiled.given(parameters[0]))
            else:
                cursor.executemany(compiled.text, [compiled.given(each) for each in parameters])
            return int(cursor.rowcount)
        finally:
            cursor.close()

    def failed(self, error: BaseException) -> BaseException:
        if isinstance(error, self.dialect.loaded_dbapi.Error):
            lost = self.dialect.is_disconnect(error, self._driver, None)
            if lost:
                self.give_up()
            return as_sqlalchemys(error, self.dialect, lost=lost)
        if not isinstance(error, Exception):  # interrupted in the middle of the driver's protocol
            self.give_up()
        return error

    def _compiled(self, statement: Executable, *, has_rows: bool) -> Compiled:
        # an engine's schema may be changed at any time
        key = statement if self._schemas is None else (statement, *self._schemas.values())
        compiled = self._known.get(key)
        if compiled is None:
            if len(self._known) >= _MOST:  # filters come in many kinds; the others are a few dozen
                self._known.clear()
            compiled = self._known[key] = Compiled(statement, self.dialect, self._schemas, has_rows=has_rows)
        return compiled
