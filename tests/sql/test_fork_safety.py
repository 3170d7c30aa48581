"""Forked processes: a child opens its own connections, and its parent's connections stay usable."""

from __future__ import annotations

import itertools
import os
import subprocess

import pytest

from tests.support import cases
from tests.support.databases import SQL_DATABASES, Storage
from tests.support.preloaded import preloaded_python

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")

SCENARIOS = [
    "our_engine",
    "callers_engine",
    "callers_static_pool",
    "joined",
    "joined_with_callers_engine",
    "first_connection",
    "migrating",
    "asynchronous_in_threads",
]
ON_A_SERVER = ("our_engine", "callers_engine", "joined", "migrating")
ASYNC_DRIVERS = [
    ("postgresql", "postgresql+psycopg"),
    ("postgresql", "postgresql+asyncpg"),
    ("mariadb", "mariadb+asyncmy"),
    ("sqlite", "sqlite+aiosqlite"),
]


def run(scenario: str, url: str) -> None:
    done = subprocess.run(
        [*preloaded_python(), "-m", "tests.support.forking", scenario, url],
        check=False,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def url_of(storage: Storage) -> str:
    assert storage.new_url is not None
    return storage.new_url()


@pytest.mark.parametrize("name", SQL_DATABASES)
def test_concurrent_children_store_all_their_entries(name: str, request: pytest.FixtureRequest) -> None:
    run("four_children", url_of(request.getfixturevalue(name)))


@pytest.mark.parametrize(
    ("name", "scenario"),
    cases(
        itertools.product(SQL_DATABASES, SCENARIOS),
        [
            *(("sqlite", scenario) for scenario in SCENARIOS),
            *(("postgresql", s) for s in ON_A_SERVER),
            ("mariadb", "joined"),
        ],
    ),
)
def test_child_opens_its_own_connections(name: str, scenario: str, request: pytest.FixtureRequest) -> None:
    if scenario == "joined_with_callers_engine" and name == "sqlite":
        pytest.skip("SQLite's driver begins no transaction that a repository can join")
    run(scenario, url_of(request.getfixturevalue(name)))


@pytest.mark.parametrize(("name", "driver"), ASYNC_DRIVERS)
def test_child_opens_its_own_async_connections(name: str, driver: str, request: pytest.FixtureRequest) -> None:
    storage: Storage = request.getfixturevalue(name)
    run("asynchronous", storage.url_with(driver))


def test_child_gets_a_copy_of_sessions_in_memory() -> None:
    run("memory", "")


def test_child_can_use_sqlite_file_after_parent_closes(sqlite: Storage) -> None:
    run("sqlite_after_parent", url_of(sqlite))
