"""Sessions with fixed times and texts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from vibeforge_sessions import ErrorEntry, Session, SessionRepository
from vibeforge_sessions.repository.spi import Record, changeset_for_create

TIME = datetime(2026, 11, 1, 12, 0, 0, 123456, tzinfo=UTC)
HOUR = timedelta(hours=1)
PHASES = ["EXECUTION", "COMPLETE", "FAILED", "QUESTIONNAIRE"]
HOSTILE = (
    "\x1b[2J\x1b]0;title\x07\x1b]8;;http://x\x1b\\ \x9b31m \u202egnp.exe \u2066x\u2069 \u200b\u00ad \x7f\r\b "
    "[bold red]markup[/] :smile: \U000e0041 \u2028 é漢😀\nsecond line\tof it"
)
"""Terminal escape sequences, markup of rich, invisible characters and ordinary text."""
UNSAFE = (
    set(map(chr, range(0x20))) - {"\n"}
    | {chr(code) for code in range(0x7F, 0xA0)}
    | set("\u202e\u2066\u2069\u200b\u00ad\u2028\U000e0041")
)
"""Characters that must never reach a terminal, apart from line ends of the output itself."""


def errors_of(count: int, first: int = 1, message: str = "it broke: {}") -> list[ErrorEntry]:
    """Return a history with two tasks in two phases."""
    return [
        ErrorEntry(
            TIME + position * HOUR / 60,
            ("compile", "test")[position % 2],
            message.format(position),
            ("EXECUTION", "VERIFICATION")[position // 3 % 2],
            position,
        )
        for position in range(first, first + count)
    ]


def restore(
    repository: SessionRepository,
    session: Session,
    errors: list[ErrorEntry] | None = None,
    logs: list[str] | None = None,
    *,
    held: bool = False,
) -> None:
    """Store a session with its own times."""
    record = Record(
        session_id=session.session_id,
        created_at=session.created_at,
        updated_at=session.updated_at,
        version=3,
        write_id="0" * 32,
        error_count=len(errors or []),
        log_count=len(logs or []),
        content=changeset_for_create(session).content,
        held_at=session.updated_at if held else None,
    )
    repository.restore_record(record, errors or [], logs or [])


def fill(repository: SessionRepository, count: int = 12) -> None:
    """Store sessions one hour apart: every third has errors, and every fifth is held."""
    for number in range(count):
        session = Session(
            session_id=f"s-{number:02}",
            phase=PHASES[number % 4],  # type: ignore[arg-type]
            created_at=TIME + number * HOUR,
            updated_at=TIME + number * HOUR + (number * 7 % count) * HOUR,
            active_task_id="compile" if number % 4 == 0 else None,
            concept={"name": "x"} if number % 2 else None,
        )
        restore(repository, session, errors_of(3) if number % 3 == 0 else [], ["a line"], held=number % 5 == 0)
