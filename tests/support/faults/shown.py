"""Texts that a log would show of an error and its causes, and captured log records."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from vibeforge_sessions import SessionRepositoryError

STATEMENT = re.compile(r"\b(SELECT|INSERT INTO|UPDATE|DELETE FROM|WITH)\s+\S")


def check_shown(error: BaseException | None, *hidden: str) -> None:
    """Assert that an error and its causes show neither the hidden texts nor a statement."""
    assert not isinstance(error, SessionRepositoryError) or len(str(error)) < 20_000
    while error is not None:
        shown = f"{error} {error!r} {''.join(traceback.format_exception_only(error))}"
        for each in hidden:
            assert each not in shown
        assert not STATEMENT.search(shown)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


class Records(logging.Handler):
    """A handler that keeps each log record with everything that a format could show of it."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        traced = "".join(traceback.format_exception(record.exc_info[1])) if record.exc_info else ""
        self.texts.append(f"{record.getMessage()} {vars(record)!r} {traced}")


@contextmanager
def records_of(name: str | None) -> Iterator[Records]:
    """Capture the records of a logger and its children at DEBUG."""
    logger, handler = logging.getLogger(name), Records()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
