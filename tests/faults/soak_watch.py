"""What the soak looks at: this process, which is the client, the server, and its files."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy import URL, QueuePool, make_url

from tests.repositories import upgrade
from tests.servers import MariaDBDatabases, MariaDBServer, PostgresDatabases, PostgresServer
from tests.servers.machine import children_of

_MEGABYTE: Final = 2**20
_CONNECTIONS: Final = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()",
    "mysql": "SELECT count(*) FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()",
}
_COUNTED: Final = (
    "SELECT (SELECT count(*) FROM vibeforge_sessions),"
    " (SELECT count(*) FROM vibeforge_session_errors) + (SELECT count(*) FROM vibeforge_session_logs)"
)


class Place(NamedTuple):
    """A database, and where its traces are."""

    url: URL
    pid: int | None
    """The server's process, None where there is none."""
    data: Path
    """The database's file, or the server's data directory."""


@contextlib.contextmanager
def place(database: str) -> Iterator[Place]:
    """Give a new database with our tables; a server waits for its disk."""
    if database == "sqlite":
        with TemporaryDirectory(prefix="vfs-soak-") as folder:
            file = Path(folder) / "sessions.db"
            url = make_url(f"sqlite:///{file}")
            upgrade(url)
            yield Place(url, None, file)
        return
    make, factory = (
        (PostgresServer, PostgresDatabases) if database == "postgresql" else (MariaDBServer, MariaDBDatabases)
    )
    with make(durable=True) as server:
        url = factory(server.url, upgrade).create()
        yield Place(url, server.pid, server.directory / "data")


class Watch:
    """Looks at the client, which is this process, at the server and at its files."""

    def __init__(self, place: Place, pools: Sequence[QueuePool]) -> None:
        self._place = place
        self._pools = pools
        self._engine = sa.create_engine(place.url, pool_size=1, isolation_level="AUTOCOMMIT")

    def close(self) -> None:
        self._engine.dispose()

    def look(self) -> dict[str, float]:
        """Return one sample."""
        backend = self._place.url.get_backend_name()
        with self._engine.connect() as connection:
            sessions, entries = connection.execute(sa.text(_COUNTED)).one()
            found: dict[str, float] = {"sessions": sessions, "entries": entries}
            if backend in _CONNECTIONS:
                found["server connections"] = connection.scalar(sa.text(_CONNECTIONS[backend])) or 0
            if backend == "postgresql":
                size = connection.scalar(sa.text("SELECT pg_database_size(current_database())")) or 0
                found["database"] = size / _MEGABYTE
        found |= {
            "client memory": _memory("self", "Rss"),
            "client file descriptors": len(list(Path("/proc/self/fd").iterdir())),
            "client threads": threading.active_count(),
            "pooled connections": sum(pool.checkedin() + pool.checkedout() for pool in self._pools),
        }
        if backend == "sqlite":
            found["database"] = _size([self._place.data])
            found["write-ahead log"] = _size([self._place.data.with_name("sessions.db-wal")])
        elif backend == "postgresql":
            found["write-ahead log"] = _size((self._place.data / "pg_wal").iterdir())
        else:
            logs = set(self._place.data.glob("ib_logfile*"))  # one file of a fixed size
            found["database"] = _size(set(self._place.data.rglob("*")) - logs)
        if self._place.pid is not None:
            found["server memory"] = sum(
                _memory(pid, "Pss") for pid in (self._place.pid, *children_of(self._place.pid))
            )
        return found


def _memory(pid: object, kind: str) -> float:
    """Return a process's resident memory: Rss is all of it, of Pss what it shares with others counts in parts."""
    with contextlib.suppress(OSError):  # it has just ended
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(f"{kind}:"):
                return int(line.split()[1]) / 1024
    return 0.0


def _size(files: Iterable[Path]) -> float:
    total = 0
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            total += file.stat().st_size if file.is_file() else 0
    return total / _MEGABYTE
