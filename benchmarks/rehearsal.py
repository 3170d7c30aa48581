"""Rehearsal of a DBA's tasks, on 100,000 sessions and with a service that writes meanwhile.

``python -m benchmarks.rehearsal [sqlite|postgresql|mariadb …]`` builds the wheel, installs it into a new environment,
and works in an empty folder with ``vibeforge-sessions`` and the client of the database. It prints a transcript with
times, and fails if a write of the service was rejected or lost.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from sqlalchemy import URL, make_url

from benchmarks.listing_index import BEFORE, SESSIONS, fill
from tests.support.servers import MariaDBServer, PostgresDatabases, PostgresServer
from tests.support.servers.databases import MariaDBDatabases
from vibeforge_sessions.sql import create_engine

ROOT: Final = Path(__file__).resolve().parents[1]
PASSWORD: Final = "rehearsal"
SERVICE: Final = """
import json, sys, threading, time
from vibeforge_sessions import Session, open_repository

stop, done, rejected, slowest = threading.Event(), [], [], [0.0]

def work(repository, number):
    session_id = f"service-{number}"
    if repository.get_session(session_id, recent=0) is None:
        repository.create_session(session_id=session_id)
    writes = [
        lambda: repository.append_log(session_id, "a line"),
        lambda: repository.append_error(session_id, "task", "it broke"),
        lambda: repository.modify_session(session_id, lambda session: session.add_answer("q", session.version)),
    ]
    count = 0
    while not stop.is_set():
        begun = time.perf_counter()
        try:
            writes[count % 3]()
            count += 1
        except Exception as error:
            rejected.append(repr(error))
        slowest[0] = max(slowest[0], time.perf_counter() - begun)
        time.sleep(0.002)
    done.append(count)

with open_repository() as repository:
    threads = [threading.Thread(target=work, args=(repository, number)) for number in range(4)]
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    sys.stdin.readline()
    stop.set()
    for thread in threads:
        thread.join()
print(json.dumps({"writes": sum(done), "rejected": rejected, "slowest": slowest[0]}))
"""
STORED: Final = """
import json
from vibeforge_sessions import open_repository
with open_repository() as repository:
    found = [repository.get_session(f"service-{number}", recent=0) for number in range(4)]
    print(json.dumps(sum(s.version - 1 + s.omitted_errors + s.omitted_logs for s in found)))
"""


class Rehearsal:
    """Database, empty folder, and environment with the wheel."""

    def __init__(self, folder: Path, environment: Path, admin: URL, of: Callable[[str], URL]) -> None:
        self.folder, self.environment, self.admin, self.of = folder, environment, admin, of
        self.written = 0

    def program(self, name: str, role: str, *arguments: str, expected: tuple[int, ...] = (0,), given: str = "") -> str:
        """Run a program of the environment as a role, and print its output."""
        print(f"\n{role}$ {name} {' '.join(arguments)}")
        return self.run([str(self.environment / "bin" / name), *arguments], role, expected, given)

    def client(self, script: str, expected: tuple[int, ...] = (0,)) -> str:
        """Run SQL with the client of the database, as its administrator."""
        url = self.admin
        address = ["-h", str(url.host)]
        if url.get_backend_name() == "sqlite":
            command = ["sqlite3", "-box", str(url.database)]
        elif url.get_backend_name() == "postgresql":
            command = ["psql", "-X", *address, "-p", str(url.port), "-U", str(url.username), str(url.database)]
        else:
            command = ["mariadb", "--no-defaults", "-t", *address, "-P", str(url.port), "-u", str(url.username)]
            command.append(str(url.database))
        print(f"\nadministrator$ {command[0]}\n{script.rstrip()}")
        return self.run(command, "administrator", expected, script)

    def run(self, command: list[str], role: str, expected: tuple[int, ...], given: str) -> str:
        """Run a command as a role; print its output, its exit code and its time."""
        begun = time.perf_counter()
        done = subprocess.run(
            command, cwd=self.folder, env=self.variables(role), input=given, capture_output=True, text=True, check=False
        )
        print(done.stdout.rstrip(), *([done.stderr.rstrip()] if done.stderr.strip() else []), sep="\n")
        print(f"-- exit code {done.returncode}, {time.perf_counter() - begun:.2f} s")
        assert done.returncode in expected, done.stderr
        return done.stdout

    def variables(self, role: str) -> dict[str, str]:
        """Return the environment variables of a role: the URL, and the password for the client of the database."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("VIBEFORGE_", "PYTHON"))}
        url = self.admin if role == "administrator" else self.of(role)
        password = {"PGPASSWORD": url.password or "", "MYSQL_PWD": url.password or ""}
        return {**kept, **password, "VIBEFORGE_SESSIONS_DATABASE_URL": url.render_as_string(hide_password=False)}

    def of_service(self) -> dict[str, str]:
        """Return the environment variables of a service of the previous release, without the new revisions."""
        return {**self.variables("application"), "PYTHONPATH": str(self.environment / "older")}

    @contextmanager
    def service(self) -> Iterator[None]:
        """Run a service that writes meanwhile; fail if a write is rejected or lost."""
        python = str(self.environment / "bin" / "python")
        with subprocess.Popen(
            [python, "-c", SERVICE],
            cwd=self.folder,
            env=self.of_service(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as service:
            assert service.stdout is not None
            assert service.stdout.readline() == "ready\n"
            time.sleep(0.5)
            yield
            time.sleep(0.5)
            said, _ = service.communicate("stop\n")
        figures: dict[str, Any] = json.loads(said)
        self.written += figures["writes"]
        asked = [python, "-c", STORED]
        stored = subprocess.run(
            asked, cwd=self.folder, env=self.of_service(), capture_output=True, text=True, check=True
        )
        lost = self.written - int(stored.stdout)
        print(
            f"== the service meanwhile: {figures['writes']} writes, {len(figures['rejected'])} rejected, {lost} lost; "
            f"the slowest took {1000 * figures['slowest']:.0f} ms"
        )
        assert (figures["rejected"], lost) == ([], 0)

    def rehearse(self) -> None:
        """Run all tasks."""
        kind = self.admin.get_backend_name()
        db, both = "vibeforge-sessions", ("db", "grants", "--role", "application", "--migrator", "migrator")
        self.program(db, "administrator", "db", "status", expected=(3,))
        if kind != "sqlite":
            self.client(self.program(db, "administrator", "db", "grants", "--migrator", "migrator"))
        self.program(db, "migrator", "db", "upgrade", BEFORE)
        engine = create_engine(self.of("migrator"))
        fill(engine)
        engine.dispose()
        if kind != "sqlite":
            self.client(self.program(db, "administrator", *both), expected=(0, 1, 3))
        self.client("SELECT count(*) AS sessions FROM vibeforge_sessions;\n")
        self.program(db, "migrator", "db", "status", expected=(4,))
        self.program(db, "migrator", "db", "plan")
        self.program(db, "migrator", "db", "upgrade", "--sql", "--since", BEFORE)
        with self.service():
            self.program(db, "migrator", "db", "upgrade")
            if kind != "sqlite":  # the upgrade has created a table
                self.client(self.program(db, "administrator", *both))
        self.program(db, "application", "db", "check")
        with self.service():
            self.program(db, "migrator", "db", "downgrade", "--yes", "--", "-1")
        with self.service():
            self.program(db, "migrator", "db", "upgrade", "--json")
        self.program(db, "application", "db", "wait", "--timeout", "5")
        if kind == "sqlite":
            self.program(db, "application", "db", "verify-data")
        self.program(db, "application", "db", "backup", "copy.db", expected=(0,) if kind == "sqlite" else (1,))
        if kind != "sqlite":
            self.program(db, "application", "db", "downgrade", "--yes", "base", expected=(1,))


def installed(folder: Path) -> Path:
    """Build and install the wheel, and the package of the previous release."""
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "-n", "-o", folder / "dist", ROOT], check=True, capture_output=True
    )
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    asked = f"{wheel}[cli,postgresql,mariadb]"
    pip: list[str | Path] = [
        environment / "bin" / "python",
        "-m",
        "pip",
        "install",
        "-q",
        "-c",
        ROOT / "constraints.txt",
        asked,
    ]
    subprocess.run(pip, check=True, capture_output=True)
    (package,) = environment.glob("lib/*/site-packages/vibeforge_sessions")
    shutil.copytree(package, environment / "older" / "vibeforge_sessions")
    for script in (environment / "older").glob("vibeforge_sessions/migrations/versions/*.py"):
        if BEFORE not in script.name:
            script.unlink()
    return environment


@contextmanager
def rehearsal(kind: str, folder: Path, environment: Path) -> Iterator[Rehearsal]:
    """Provide a rehearsal on a database of a private, durable server, with a role for each task."""
    if kind == "sqlite":
        url = make_url(f"sqlite:///{folder / 'sessions.db'}")
        yield Rehearsal(folder, environment, url, lambda _: url)
        return
    with PostgresServer(durable=True) if kind == "postgresql" else MariaDBServer(durable=True) as server:
        make = PostgresDatabases if kind == "postgresql" else MariaDBDatabases
        admin = make(server.url).create(migrated=False)
        found = Rehearsal(folder, environment, admin, lambda role: admin.set(username=role, password=PASSWORD))
        word = "CREATE ROLE {} LOGIN PASSWORD '{}';" if kind == "postgresql" else "CREATE USER {} IDENTIFIED BY '{}';"
        found.client("".join(f"{word.format(role, PASSWORD)}\n" for role in ("migrator", "application")))
        yield found


if __name__ == "__main__":
    with TemporaryDirectory() as home:
        environment = installed(Path(home))
        for asked in sys.argv[1:] or ["sqlite", "postgresql", "mariadb"]:
            with TemporaryDirectory() as empty:
                print(f"\n{'=' * 20} {asked}, {SESSIONS:,} sessions {'=' * 20}")
                with rehearsal(asked, Path(empty), environment) as found:
                    found.rehearse()
