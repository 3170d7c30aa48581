"""The choice of how the statements of a call are executed: on the driver's connection, or through SQLAlchemy's."""

from __future__ import annotations

import logging
import operator
from typing import Final

from sqlalchemy import Engine

from vibeforge_sessions.sql.dialects.base import OURS, POOLER
from vibeforge_sessions.sql.transactions.connection_executor import ThroughSQLAlchemy
from vibeforge_sessions.sql.transactions.driver_executor import SCHEMAS, Known, OnTheDriver
from vibeforge_sessions.sql.transactions.error_translation import as_sqlalchemys
from vibeforge_sessions.sql.transactions.executor import Executor

_listeners: Final = operator.attrgetter(
    "after_cursor_execute",
    "after_execute",
    "before_cursor_execute",
    "before_execute",
    "commit",
    "engine_connect",
    "rollback",
    "set_connection_execution_options",
)
"""The listeners to the events that the driver's way would not raise. ``begin`` is our own on SQLite, see there."""
_dialects_listeners: Final = operator.attrgetter("do_execute", "do_execute_no_params", "do_executemany", "handle_error")
_UNDERSTOOD: Final = {OURS, POOLER, SCHEMAS}
"""The execution options of an engine that the driver's way knows how to follow."""


def executor_of(engine: Engine, known: Known | None) -> Executor:
    """Take a connection of the engine; return the quick way on it if the engine is ours as made, and nobody watches.

    :param known: the engine's compiled statements; None to go through SQLAlchemy in any case.
    :raises SQLAlchemyError: the database cannot be reached.
    """
    if known is None or _is_watched(engine):
        return ThroughSQLAlchemy(engine.connect())
    try:
        return OnTheDriver(engine, engine.raw_connection(), known)
    except engine.dialect.loaded_dbapi.Error as error:
        raise as_sqlalchemys(error, engine.dialect, lost=False) from error


def _is_watched(engine: Engine) -> bool:
    """Tell whether somebody could miss something: by listening, by logging, or by options of his own."""
    options = engine.get_execution_options()
    if not options.get(OURS) or options.keys() - _UNDERSTOOD or engine.logger.isEnabledFor(logging.INFO):
        return True
    return any(_listeners(engine.dispatch)) or any(_dialects_listeners(engine.dialect.dispatch))
