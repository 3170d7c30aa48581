"""A private MariaDB server, from the system's packages."""

from __future__ import annotations

import os
import pwd
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import sqlalchemy as sa

from .process import PrivateServer, find_program

_USER = "vibeforge"
_INIT_FILE = "init.sql"


class MariaDBServer(PrivateServer):
    """A server: ``with MariaDBServer() as server: create_engine(server.url)``.

    ``charset`` and ``collation`` are the server's defaults (without any option MariaDB uses latin1). ``args`` are
    further options of ``mariadbd`` ("--max-allowed-packet=1M"). A server that is not ``durable`` never waits for a
    disk: it is faster, and unsuitable for a test that crashes it.
    """

    prefix: ClassVar[str] = "vfs-my-"
    users: ClassVar[tuple[str, ...]] = ("mysql", "nobody")
    foreign_variables: ClassVar[tuple[str, ...]] = ("MYSQL", "MARIADB")
    shutdown_signal: ClassVar[signal.Signals] = signal.SIGTERM
    stop_signal: ClassVar[signal.Signals] = signal.SIGKILL  # the server has no resources outside of its directory

    def __init__(
        self,
        *,
        charset: str = "utf8mb4",
        collation: str | None = None,
        args: Sequence[str] = (),
        durable: bool = False,
    ) -> None:
        super().__init__(durable=durable)
        self._server = find_program("mariadbd", of="MariaDB", package="mariadb-server")
        self._installer = find_program("mariadb-install-db", of="MariaDB", package="mariadb-server")
        self._charset = charset
        self._collation = collation
        self._args = tuple(args)

    @property
    def url(self) -> sa.URL:
        return self.url_for("mysql+pymysql")

    def url_for(self, drivername: str) -> sa.URL:
        """Return the administrator's URL for another driver, such as ``mariadb+pymysql`` or ``mysql+asyncmy``."""
        return sa.URL.create(drivername, _USER, self.password, "127.0.0.1", self.port or None)

    @property
    def socket(self) -> Path:
        """The Unix socket, for command-line tools."""
        return self.directory / "socket"

    @property
    def version(self) -> tuple[int, ...]:
        number = str(self._scalar("SELECT VERSION()")).partition("-")[0]
        return tuple(map(int, number.split(".")))

    def _install(self) -> None:
        system_user = self._user or pwd.getpwuid(os.geteuid())
        self._temporary.mkdir()
        self._hand_over(self._temporary)
        self._run(
            self._installer,
            "--no-defaults",
            f"--datadir={self._data}",
            f"--tmpdir={self._temporary}",
            # No account without a password: this account is limited to this system user on the Unix socket.
            "--auth-root-authentication-method=socket",
            f"--auth-root-socket-user={system_user.pw_name}",
            "--skip-test-db",
            *_WITHOUT_SYNC,
            _SMALL_LOG,
        )
        self._write_secret(
            _INIT_FILE,
            f"CREATE OR REPLACE USER {_USER}@127.0.0.1 IDENTIFIED BY '{self.password}';\n"
            f"GRANT ALL ON *.* TO {_USER}@127.0.0.1 WITH GRANT OPTION;\n",
        )

    def _command(self) -> list[str]:
        command = [
            str(self._server),
            "--no-defaults",
            f"--datadir={self._data}",
            f"--socket={self.socket}",
            f"--pid-file={self.directory / 'pid'}",
            f"--port={self.port}",
            "--bind-address=127.0.0.1",
            "--skip-name-resolve",
            f"--tmpdir={self._temporary}",
            f"--init-file={self.directory / _INIT_FILE}",
            f"--character-set-server={self._charset}",
            _SMALL_LOG,
        ]
        if self._collation is not None:
            command.append(f"--collation-server={self._collation}")
        if self.durable:
            command.append("--innodb-flush-log-at-trx-commit=1")
        else:
            command += ["--innodb-flush-log-at-trx-commit=0", "--skip-innodb-doublewrite", *_WITHOUT_SYNC]
        return [*command, *self._args]

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    @property
    def _temporary(self) -> Path:
        # Not /tmp, where a starting server would delete the temporary tables of a running one.
        return self.directory / "tmp"


#: No call of fsync for the files of tables and of MariaDB itself.
_WITHOUT_SYNC = ("--debug-no-sync", "--innodb-flush-method=nosync")
#: Smaller than the default of 96 MB for a faster start, and still ten times the largest row of the tests.
_SMALL_LOG = "--innodb-log-file-size=64M"
