"""Statistics on each database: equality with counts in Python, time limits, and query plans."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, event, text

from tests.support.databases import Storage
from vibeforge_sessions import ErrorEntry, InvalidArgumentError, Session, SQLAlchemySessionRepository, StorageError
from vibeforge_sessions.model.record import Content
from vibeforge_sessions.repository.serialization import DOCUMENTS, REQUIRED, Record
from vibeforge_sessions.sql import create_engine
from vibeforge_sessions.sql.admin.statistics import AGES, count_ages, count_errors, count_phases, table_sizes

DAY = timedelta(days=1)
START = datetime(2026, 11, 1, tzinfo=UTC)
TASKS = ["compile", "Compile", "compile ", "tests", "pack", "\u202eé"]
PHASES = ["EXECUTION", "VERIFICATION", "OF_TOMORROW"]
SEED = 20261126


def restore(
    engine: Engine, number: int, phase: str, created: datetime, errors: list[ErrorEntry], *, held: bool = False
) -> Record:
    updated = max([created, *(entry.timestamp for entry in errors)])
    documents = {name: "[]" if "ids" in name else "{}" if name in REQUIRED else None for name in DOCUMENTS}
    record = Record(
        session_id=f"s{number}",
        created_at=created,
        updated_at=updated,
        version=1,
        write_id="0" * 32,
        error_count=len(errors),
        log_count=2,
        content=Content(phase, 0, None, documents),
        held_at=updated if held else None,
    )
    SQLAlchemySessionRepository(engine).restore_record(record, errors, ["a line", "another"])
    return record


def filled(engine: Engine) -> tuple[list[Record], list[ErrorEntry]]:
    chance = random.Random(SEED)
    records, all_errors = [], []
    for number in range(40):
        created = START + chance.random() * 20 * DAY
        times = sorted(created + chance.random() * 3 * DAY for _ in range(chance.randrange(12)))
        errors = [
            ErrorEntry(time, chance.choice(TASKS), "it broke", chance.choice(PHASES), position)
            for position, time in enumerate(times, 1)
        ]
        records.append(restore(engine, number, chance.choice(PHASES), created, errors, held=number % 7 == 0))
        all_errors += errors
    return records, all_errors


def test_phase_counts_equal_counts_in_python(engine: Engine) -> None:
    assert count_phases(engine) == []
    records, _ = filled(engine)
    counts = count_phases(engine)
    assert [each.sessions for each in counts] == sorted((each.sessions for each in counts), reverse=True)
    for each in counts:
        of_phase = [record for record in records if record.content.phase == each.phase]
        assert each.sessions == len(of_phase)
        assert each.oldest == min(record.created_at for record in of_phase)
        assert each.newest == max(record.created_at for record in of_phase)
        assert each.touched == max(record.updated_at for record in of_phase)
        assert (each.errors, each.logs) == (sum(record.error_count for record in of_phase), 2 * len(of_phase))
        assert each.held == sum(record.held_at is not None for record in of_phase)
        assert type(each.errors) is int
    assert {each.phase for each in counts} == set(PHASES)


@pytest.mark.parametrize("every", ["day", "hour"])
@pytest.mark.parametrize("top", [0, 2, 10, 1000], ids=["none", "two", "ten", "all"])
def test_error_counts_equal_counts_in_python(engine: Engine, every: str, top: int) -> None:
    _, errors = filled(engine)
    length = DAY if every == "day" else timedelta(hours=1)
    since, before = START + 5 * DAY, START + 15.5 * DAY
    for given, window in (
        ({}, errors),
        ({"since": since}, [each for each in errors if each.timestamp >= since]),
        ({"before": before}, [each for each in errors if each.timestamp < before]),
        ({"since": since, "before": before}, [each for each in errors if since <= each.timestamp < before]),
        ({"since": before + 10 * DAY}, []),
    ):
        pairs = Counter((each.task_id, each.phase) for each in window)
        # equal totals are ordered by the bytes of their names
        first = sorted(pairs, key=lambda pair: (-pairs[pair], pair[0].encode(), pair[1].encode()))[:top]
        wanted: Counter[tuple[datetime, str | None, str | None]] = Counter()
        for each in window:
            begins = START + (each.timestamp - START) // length * length
            pair = (each.task_id, str(each.phase))
            wanted[begins, *(pair if pair in first else (None, None))] += 1
        counts = count_errors(engine, every=every, top=top, **given)  # type: ignore[arg-type]
        assert {(each.begins, each.task_id, each.phase): each.errors for each in counts} == wanted
        assert [each.begins for each in counts] == sorted(each.begins for each in counts)


def test_error_counts_cover_first_and_last_years(engine: Engine) -> None:
    for number, year in enumerate((1, 9999)):
        time = datetime(year, 6, 15, 12, 30, tzinfo=UTC)
        restore(engine, number, "FAILED", time, [ErrorEntry(time, "task", "it broke", "FAILED", 1)])
    assert [each.begins.year for each in count_errors(engine)] == [1, 9999]
    assert [each.begins.hour for each in count_errors(engine, every="hour")] == [12, 12]


def test_age_counts_equal_known_ages(engine: Engine) -> None:
    assert [each.sessions for each in count_ages(engine)] == [0] * (len(AGES) + 1)
    now = datetime.now(UTC)
    minute = timedelta(minutes=1)
    ages = [-DAY, 0 * DAY, AGES[0] - minute, AGES[0] + minute, AGES[1] + minute, AGES[4] + minute, 5000 * DAY]
    for number, age in enumerate(ages):
        restore(engine, number, "COMPLETE", now - age, [])
    counts = count_ages(engine)
    assert [(each.least, each.most) for each in counts][:2] == [(0 * DAY, AGES[0]), (AGES[0], AGES[1])]
    assert counts[-1].most is None
    assert [each.sessions for each in counts] == [3, 1, 1, 0, 0, 1, 1]
    SQLAlchemySessionRepository(engine).append_log("s6", "touched")
    assert [each.sessions for each in count_ages(engine)] == [4, 1, 1, 0, 0, 1, 0]
    assert [each.sessions for each in count_ages(engine, of="created_at")] == [3, 1, 1, 0, 0, 1, 1]
    assert [each.sessions for each in count_ages(engine, edges=[2 * DAY])] == [6, 1]
    assert [each.sessions for each in count_ages(engine, edges=[timedelta(days=999_999)])] == [7, 0]


def test_table_sizes_contain_stored_document(engine: Engine) -> None:
    repository = SQLAlchemySessionRepository(engine)
    repository.create_session(Session(session_id="large", answers={"text": "x" * 500_000}))
    with engine.begin() as connection:  # MariaDB updates its figures at ANALYZE
        if engine.dialect.name not in {"sqlite", "postgresql"}:
            connection.exec_driver_sql("ANALYZE TABLE vibeforge_session_documents").close()
    sizes = {each.table: each for each in table_sizes(engine)}
    assert set(sizes) == {
        "vibeforge_sessions", "vibeforge_session_documents", "vibeforge_session_errors", "vibeforge_session_logs"
    }  # fmt: skip
    assert all(each.data > 0 for each in sizes.values())
    assert all(each.indexes >= 0 for each in sizes.values())
    assert sizes["vibeforge_sessions"].indexes > 0
    documents = sizes["vibeforge_session_documents"].data
    # PostgreSQL compresses the document
    assert documents > (500_000 if engine.dialect.name != "postgresql" else 5_000)


@pytest.mark.parametrize("kind", ["limited", "without dbstat"])
def test_sqlite_sizes_without_dbstat_are_total_of_file(
    sqlite: Storage, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vibeforge_sessions.sql.dialects import sqlite as sqlite_module  # noqa: PLC0415

    engine = sqlite.new_engine()
    if kind == "without dbstat":
        monkeypatch.setattr(sqlite_module, "_HAS_DBSTAT", "SELECT 1 WHERE FALSE")
    else:
        monkeypatch.setattr(sqlite_module, "_STEPS_BETWEEN_CLOCK_CHECKS", 1)
    (size,) = table_sizes(engine, timeout=1e-9 if kind == "limited" else 30.0)
    assert (size.table, size.indexes) == (None, 0)
    assert size.data > 0
    engine.dispose()


def test_query_beyond_timeout_is_cancelled_by_database(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a query that would take minutes. The database cancels it after the timeout."""
    from vibeforge_sessions.sql.admin import statistics  # noqa: PLC0415

    filled(engine)
    tables = ", ".join(f"vibeforge_sessions AS of_{number}" for number in range(8))
    monkeypatch.setattr(statistics, "_phases", text(f"SELECT count(*), min(of_0.version + of_7.version) FROM {tables}"))
    with pytest.raises(StorageError, match=r"exceeded the limit of 0\.2 s"):
        count_phases(engine, timeout=0.2)
    monkeypatch.undo()
    with engine.connect() as connection:  # the pooled connection keeps no limit
        if engine.dialect.name == "postgresql":
            assert connection.exec_driver_sql("SHOW statement_timeout").scalar() == "0"
        elif engine.dialect.name != "sqlite":
            assert connection.exec_driver_sql("SELECT @@max_statement_time").scalar() == 0
    assert sum(each.sessions for each in count_phases(engine)) == 40


def test_each_statistic_is_one_query(engine: Engine) -> None:
    filled(engine)
    seen: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *given: seen.append(given[2]))
    for statistic in (count_phases, count_errors, count_ages, table_sizes):
        seen.clear()
        statistic(engine)
        queries = [
            each for each in seen if each.lstrip().startswith(("SELECT", "WITH")) and "vibeforge_session" in each
        ]
        queries += [each for each in seen if "dbstat AS" in each or "pg_table_size" in each or "data_length" in each]
        assert len(queries) == 1, seen


def test_errors_of_time_window_are_found_by_index_on_sessions(sqlite: Storage) -> None:
    """Explain the query on SQLite: it must not scan all errors to count the ones of a time window.

    The servers' plans depend on the amount of data, so `benchmarks.scale` checks them.
    """
    engine = sqlite.new_engine()
    filled(engine)
    plans: list[str] = []

    def explain(connection, cursor, statement, parameters, context, many) -> None:  # type: ignore[no-untyped-def]
        if "vibeforge_session_errors" in statement and not statement.startswith("EXPLAIN"):
            rows = connection.connection.driver_connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plans.extend(row[3] for row in rows)

    event.listen(engine, "before_cursor_execute", explain)
    count_errors(engine, since=START + 22 * DAY)
    plan = "\n".join(plans)
    assert "SEARCH vibeforge_sessions USING COVERING INDEX ix_vibeforge_sessions_updated_at_session_id" in plan
    assert "SEARCH vibeforge_session_errors USING INDEX" in plan
    assert "SCAN vibeforge_session_errors" not in plan
    engine.dispose()


@pytest.mark.parametrize(
    ("statistic", "arguments"),
    [
        (count_errors, {"top": -1}),
        (count_errors, {"top": 1001}),
        (count_errors, {"every": "minute"}),
        (count_errors, {"since": datetime(2026, 1, 1)}),  # noqa: DTZ001
        (count_ages, {"of": "held_at"}),
        (count_ages, {"edges": []}),
        (count_ages, {"edges": [DAY, DAY]}),
        (count_ages, {"edges": [2 * DAY, DAY]}),
        (count_ages, {"edges": [0 * DAY]}),
        (count_phases, {"timeout": 0}),
        (count_phases, {"timeout": 1e9}),
        (table_sizes, {"timeout": -1}),
    ],
    ids=[
        "negative top",
        "large top",
        "unknown interval",
        "naive time",
        "unknown column",
        "no edges",
        "equal edges",
        "descending edges",
        "zero edge",
        "zero timeout",
        "large timeout",
        "negative timeout",
    ],
)
def test_invalid_argument_of_statistic_is_rejected(sqlite: Storage, statistic, arguments) -> None:  # type: ignore[no-untyped-def]
    engine = sqlite.new_engine()
    with pytest.raises(InvalidArgumentError):
        statistic(engine, **arguments)
    engine.dispose()


def test_statistics_use_configured_schema(postgresql: Storage) -> None:
    from vibeforge_sessions.sql import migrate  # noqa: PLC0415

    assert postgresql.new_url is not None
    url = postgresql.new_url()
    with create_engine(url).begin() as connection:
        connection.exec_driver_sql('CREATE SCHEMA "of ""the"" application"')
    connection.engine.dispose()
    engine = create_engine(url, schema='of "the" application')
    migrate.upgrade(engine)
    filled(engine)
    assert sum(each.sessions for each in count_phases(engine)) == 40
    assert len(table_sizes(engine)) == 4
    assert count_errors(engine)
    with create_engine(url).connect() as connection:
        assert count_phases(connection.engine) == []
    connection.engine.dispose()
    engine.dispose()
