"""A private PgBouncer in transaction mode, from the system's packages."""

from __future__ import annotations

import re
import signal
import subprocess
from typing import ClassVar

import sqlalchemy as sa

from .process import PrivateServer, find_program


class PgBouncer(PrivateServer):
    """A pooler: ``with PgBouncer(server.url) as bouncer: create_engine(bouncer.url_of(url), pgbouncer=True)``.

    Every database of the server is accessible through it. ``connections`` is the number of connections to each
    database. Clients may be more numerous, and share the connections transaction by transaction.
    """

    prefix: ClassVar[str] = "vfs-pb-"
    users: ClassVar[tuple[str, ...]] = ("postgres", "nobody")
    foreign_variables: ClassVar[tuple[str, ...]] = ("PG",)
    shutdown_signal: ClassVar[signal.Signals] = signal.SIGINT
    stop_signal: ClassVar[signal.Signals] = signal.SIGKILL  # the pooler has no resources outside of its directory

    def __init__(self, server: sa.URL, *, connections: int = 2, accepts_options: bool = False) -> None:
        super().__init__(durable=False)
        self._program = find_program("pgbouncer", of="PgBouncer", package="pgbouncer")
        self._server = server
        self._connections = connections
        self._ignored = "options" if accepts_options else ""
        """Startup parameters that the pooler ignores, as some other poolers do. It rejects others."""

    @property
    def url(self) -> sa.URL:
        return self.url_of(self._server)

    def url_of(self, url: sa.URL) -> sa.URL:
        """Return the URL of a database of the server through this pooler."""
        return url.set(host="127.0.0.1", port=self.port or None)

    @property
    def version(self) -> tuple[int, ...]:
        output = subprocess.run([str(self._program), "--version"], check=True, capture_output=True, text=True).stdout
        return tuple(map(int, re.findall(r"\d+", output.splitlines()[0])))

    def _install(self) -> None:
        pass

    def _command(self) -> list[str]:
        url = self._server
        config = self._write_secret(
            "pgbouncer.ini",
            f"[databases]\n* = host={url.host} port={url.port} user={url.username} password={url.password}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\nauth_type = any\n"
            f"pool_mode = transaction\ndefault_pool_size = {self._connections}\nmax_client_conn = 500\n"
            f"ignore_startup_parameters = {self._ignored}\n",
        )
        return [str(self._program), "-q", str(config)]
