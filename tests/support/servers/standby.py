"""A PostgreSQL server with a standby that takes over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import sqlalchemy as sa

from .machine import wait_for
from .postgres import PostgresServer
from .process import connected, several_hosts

_TIMEOUT = 30.0
_SETTINGS = (
    "synchronous_commit=on",  # off for servers that are not durable, which would prevent synchronous replication
    "wal_keep_size=64MB",
    "wal_retrieve_retry_interval=100ms",  # interval after which a standby that was cut off tries to reach its primary
)


class PostgresStandby(PostgresServer):
    """A copy of another server that receives its commits, and is read-only until it is promoted.

    ``port`` is the port of a server that it replaces.
    """

    prefix: ClassVar[str] = "vfs-sb-"

    def __init__(self, primary: PostgresServer, *, options: Sequence[str] = (), port: int = 0) -> None:
        super().__init__(bindir=primary.bindir, options=options, durable=primary.durable)
        self._primary = primary
        self._port = port
        self.password = primary.password

    def promote(self) -> None:
        """Make the standby a primary; return when it accepts writes."""
        assert self._scalar("SELECT pg_promote(true, 30)"), "the standby was not promoted"

    def cut(self) -> None:
        """Stop receiving commits, as if the network to the primary were interrupted."""
        self._receive_from("")
        wait_for(
            lambda: not self._scalar("SELECT count(*) FROM pg_stat_wal_receiver"), _TIMEOUT, "the standby to disconnect"
        )

    def mend(self) -> None:
        """Receive commits again, including the missed ones."""
        self._receive_from(self._source)

    def _install(self) -> None:
        password_file = self._write_secret("primary", f"127.0.0.1:*:*:postgres:{self.password}")
        self._source = f"host=127.0.0.1 port={self._primary.port} user=postgres passfile={password_file}"
        self._run(
            self._bindir / "pg_basebackup",
            *("-d", self._source, "-D", self._data, "--wal-method=stream", "--checkpoint=fast", "--no-sync"),
        )
        settings = self._data / "postgresql.auto.conf"
        with settings.open("a") as file:
            # A promoted server that required a synchronous standby would wait for it at every commit.
            file.write(f"primary_conninfo = '{self._source}'\nsynchronous_standby_names = ''\n")
        (self._data / "standby.signal").touch()
        self._hand_over(self._data / "standby.signal")

    def _launch_on_a_free_port(self) -> None:
        if self._port:
            self.port = self._port
            self._launch()
        else:
            super()._launch_on_a_free_port()

    def _receive_from(self, source: str) -> None:
        _configure(self, f"primary_conninfo = '{source}'")


class PostgresPair:
    """A primary and its standby: ``with PostgresPair() as pair: create_engine(pair.url())``.

    A ``synchronous`` standby has each commit before it is acknowledged. ``durable`` has the meaning of
    `PostgresServer`. A ``kill -9`` does not lose data of a server without it, because the machine does not crash.
    """

    def __init__(self, *, synchronous: bool = True, durable: bool = False, bindir: str | Path | None = None) -> None:
        self.synchronous = synchronous
        self.primary: PostgresServer = PostgresServer(bindir=bindir, options=_SETTINGS, durable=durable)
        self.standby: PostgresStandby | None = None

    def start(self) -> Self:
        self.primary.start()
        try:
            self.add_standby()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        if self.standby is not None:
            self.standby.stop()
        self.primary.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def url(self, database: str | None = None, drivername: str = "postgresql+psycopg") -> sa.URL:
        """Return the URL of both servers, the current primary first; the driver uses the server that is the primary."""
        assert self.standby is not None
        hosts = [f"127.0.0.1:{server.port}" for server in (self.primary, self.standby)]
        url = self.primary.url.set(drivername=drivername, database=database or "postgres")
        return several_hosts(url, hosts, target_session_attrs="read-write")

    def fail_over(self) -> PostgresServer:
        """Promote the standby and return the former primary, which no longer belongs to the pair."""
        assert self.standby is not None
        former = self.primary
        self.standby.promote()
        self.primary, self.standby = self.standby, None
        return former

    def add_standby(self, port: int = 0) -> None:
        """Create a standby, optionally on a given port; return when it has all data and receives each commit."""
        self.standby = PostgresStandby(self.primary, options=_SETTINGS, port=port).start()
        self.wait_for_standby()
        if self.synchronous:
            # Set only now, because without a standby each commit would wait for one.
            _configure(self.primary, "synchronous_standby_names = '*'")
            self.wait_for_standby()

    def wait_for_standby(self) -> None:
        """Return when the standby receives each commit immediately."""
        state = "sync" if self.replicates_synchronously() else "async"
        statement = sa.text(
            "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = :state"
        )

        def streams() -> bool:
            with connected(self.primary.url) as connection:
                return bool(connection.scalar(statement, {"state": state}))

        wait_for(streams, _TIMEOUT, f"the standby to stream ({state})")

    def replicates_synchronously(self) -> bool:
        """Return whether the primary waits for a standby."""
        with connected(self.primary.url) as connection:
            return bool(connection.scalar(sa.text("SHOW synchronous_standby_names")))


def _configure(server: PostgresServer, setting: str) -> None:
    with connected(server.url, isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"ALTER SYSTEM SET {setting}")
        connection.exec_driver_sql("SELECT pg_reload_conf()")
