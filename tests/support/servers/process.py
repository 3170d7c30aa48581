"""The common base of private servers: directory, port, user, start and stop."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import sqlalchemy as sa

from .machine import children_of, free_port, is_running, parent_of_server_directory, wait_for

_START_TIMEOUT = 60.0
_POLL_EVERY = 0.01
#: Another process may take the port between its selection and the server's start.
_PORT_ATTEMPTS = 5


class ServerUnavailable(Exception):  # noqa: N818 - a property of this machine, usually not an error
    """This machine cannot run such a server; the message contains the reason."""


class PrivateServer(ABC):
    """A private server on a free port of 127.0.0.1, in its own directory, which is removed completely afterwards.

    It is removed even if this process is killed: the server is a child of a guard (``guard.py``) that monitors this
    process.
    """

    prefix: ClassVar[str]
    #: Users to run as when this process is root, because the servers do not run as root.
    users: ClassVar[tuple[str, ...]]
    #: Prefixes of environment variables that would change the behavior of the server or its tools.
    foreign_variables: ClassVar[tuple[str, ...]]
    #: Signals for a proper shutdown, and for an immediate end that only releases shared memory.
    shutdown_signal: ClassVar[signal.Signals]
    stop_signal: ClassVar[signal.Signals]

    def __init__(self, *, durable: bool) -> None:
        self.durable = durable
        self.port = 0
        self.pid = 0
        self.password = random.SystemRandom().randbytes(12).hex()
        self.directory = Path()
        self._guard: subprocess.Popen[bytes] | None = None
        self._user: pwd.struct_passwd | None = None
        self._frozen = False

    # -- properties of a kind of server

    @property
    @abstractmethod
    def url(self) -> sa.URL:
        """The administrator's URL. (``str(url)`` hides the password; the URL itself does not.)"""

    @property
    @abstractmethod
    def version(self) -> tuple[int, ...]:
        """The server's version, such as (18, 1) or (10, 11, 6)."""

    @abstractmethod
    def _install(self) -> None:
        """Create the data directory."""

    @abstractmethod
    def _command(self) -> list[str]:
        """Return the server's command line for ``self.port``."""

    def _is_ready(self) -> bool:
        """Return whether the server is ready; an `OperationalError` means that it is not."""
        self._scalar("SELECT 1")
        return True

    # -- start and stop

    def start(self) -> Self:
        """Install and start the server; return when it answers connections."""
        assert self._guard is None, "started already"
        self._user = self._unprivileged_user()
        self.directory = self._make_directory()
        guard = Path(__file__).with_name("guard.py")
        try:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", str(guard), str(os.getpid()), str(self.directory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # A reader of pytest's output must not have to wait for the guard's end.
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,  # Ctrl-C must reach pytest only, which then stops the server
            )
        except BaseException:
            shutil.rmtree(self.directory, ignore_errors=True)
            raise
        try:
            self._install()
            self._launch_on_a_free_port()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End the server immediately and remove its directory. May be called twice."""
        if self._frozen and self.is_running():
            self.thaw()  # its children must receive the signal
        guard, self._guard = self._guard, None
        if guard is None:
            return
        assert guard.stdin is not None
        assert guard.stdout is not None
        with contextlib.suppress(BrokenPipeError), guard.stdin:
            guard.stdin.write(b'{"op": "stop"}\n')
        guard.wait()
        guard.stdout.close()

    def kill9(self) -> None:
        """Kill the server and its child processes with SIGKILL. The data remain; see `restart`."""
        self._frozen = False
        os.kill(self.pid, signal.SIGSTOP)  # it must not start children while they are listed
        family = [self.pid, *children_of(self.pid)]
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._wait_until_ended()
        wait_for(lambda: not any(map(is_running, family)), 10.0, "killed processes to vanish")

    def freeze(self) -> None:
        """Stop the server's processes, as on a hanging machine: it answers no client and closes no connection."""
        self._frozen = True
        os.kill(self.pid, signal.SIGSTOP)
        for pid in children_of(self.pid):
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Continue the server's processes after `freeze`."""
        self._frozen = False
        for pid in (*children_of(self.pid), self.pid):
            os.kill(pid, signal.SIGCONT)

    def shut_down(self) -> None:
        """End the server properly and keep the data; see `restart`."""
        os.kill(self.pid, self.shutdown_signal)
        self._wait_until_ended()

    def restart(self) -> None:
        """Start the server on the same port with the same data; a running server is shut down properly first."""
        if self.is_running():
            self.shut_down()
        self._launch()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def is_running(self) -> bool:
        """Return whether the server has been started and has not ended."""
        return self._guard is not None and self._exit_code(self.pid) is None

    # -- helpers for subclasses

    @property
    def log(self) -> str:
        """The output of the server and its tools so far."""
        return self._log_path.read_text(errors="replace") if self._log_path.exists() else ""

    def _run(self, *argv: str | Path, stop_signal: signal.Signals = signal.SIGKILL) -> None:
        """Run one of the server's tools until it ends or must be stopped."""
        pid = self._spawn([str(word) for word in argv], stop_signal)
        wait_for(lambda: self._exit_code(pid) is not None, _START_TIMEOUT, f"{argv[0]} to end")
        if self._exit_code(pid) != 0:
            raise ServerUnavailable(f"{argv[0]} failed: {self.log[-2000:]}")

    def _write_secret(self, name: str, text: str) -> Path:
        """Create a file that only the server's user can read."""
        path = self.directory / name
        path.touch(mode=0o600)
        path.write_text(text)
        self._hand_over(path)
        return path

    def _hand_over(self, path: Path) -> None:
        if self._user is not None:
            os.chown(path, self._user.pw_uid, self._user.pw_gid)

    def _scalar(self, statement: str) -> Any:
        with connected(self.url) as connection:
            return connection.scalar(sa.text(statement))

    # -- private helpers

    @property
    def _log_path(self) -> Path:
        return self.directory / "log"

    def _unprivileged_user(self) -> pwd.struct_passwd | None:
        if os.geteuid() != 0:
            return None
        for name in self.users:
            with contextlib.suppress(KeyError):
                return pwd.getpwnam(name)
        raise ServerUnavailable(f"this process is root, and none of the users {', '.join(self.users)} exists")

    def _make_directory(self) -> Path:
        # Root may have to copy the server's programs there, so that the other user can run them.
        parent = parent_of_server_directory(
            in_memory=not self.durable, with_programs_for_another_user=self._user is not None
        )
        directory = Path(tempfile.mkdtemp(prefix=self.prefix, dir=parent))
        self._hand_over(directory)
        return directory

    def _launch_on_a_free_port(self) -> None:
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            self.port = free_port()
            try:
                self._launch()
            except ServerUnavailable:
                if attempt == _PORT_ATTEMPTS or "address already in use" not in self.log.lower():
                    raise
            else:
                return

    def _launch(self) -> None:
        self.pid = self._spawn(self._command(), self.stop_signal)
        end = time.monotonic() + _START_TIMEOUT
        while True:
            answer: object = "the server is not ready"
            try:
                if self._is_ready():
                    return
            except sa.exc.OperationalError as error:
                answer = error
            if self._exit_code(self.pid) is not None:
                raise ServerUnavailable(f"the server ended during its start: {self.log[-2000:]}")
            if time.monotonic() > end:
                raise ServerUnavailable(f"the server does not answer: {answer}; {self.log[-2000:]}")
            time.sleep(_POLL_EVERY)

    def _spawn(self, argv: Sequence[str], stop_signal: signal.Signals) -> int:
        environment = {
            k: v for k, v in os.environ.items() if not k.startswith((*self.foreign_variables, "LC_", "LANG"))
        }
        answer = self._ask(
            op="start",
            argv=argv,
            env=environment | {"LC_ALL": "C"},  # English messages, and no locale that may not be installed
            log=str(self._log_path),
            user=self._user.pw_uid if self._user else None,
            group=self._user.pw_gid if self._user else None,
            stop_signal=int(stop_signal),
        )
        if "error" in answer:
            raise ServerUnavailable(f"cannot run {argv[0]}: {answer['error']}")
        return int(answer["pid"])

    def _exit_code(self, pid: int) -> int | None:
        code: int | None = self._ask(op="poll", pid=pid)["code"]
        return code

    def _wait_until_ended(self) -> None:
        wait_for(lambda: self._exit_code(self.pid) is not None, _START_TIMEOUT, "the server to end")

    def _ask(self, **request: object) -> Mapping[str, Any]:
        assert self._guard is not None, "not started"
        assert self._guard.stdin is not None
        assert self._guard.stdout is not None
        self._guard.stdin.write(json.dumps(request).encode() + b"\n")
        self._guard.stdin.flush()
        line = self._guard.stdout.readline()
        if not line:
            raise RuntimeError("the server's guard has died")
        answer: Mapping[str, Any] = json.loads(line)
        return answer


def find_program(name: str, *, of: str, package: str) -> Path:
    """Return the path of a program of the system."""
    # An ordinary user's PATH often lacks the folders of servers.
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
    if found is None:
        raise ServerUnavailable(f"no {of} found: {name} is not installed (Debian: {package})")
    return Path(found)


def several_hosts(url: sa.URL, hosts: Sequence[str], **query: str) -> sa.URL:
    """Return the URL for several hosts, of which the driver uses a suitable one."""
    pairs = [*(("host", host) for host in hosts), *query.items()]
    return sa.URL.create(url.drivername, url.username, url.password, database=url.database).update_query_pairs(pairs)


def connected(url: sa.URL, **options: Any) -> sa.Connection:
    """Return a connection without a pool, which the caller closes."""
    return sa.create_engine(url, poolclass=sa.NullPool, **options).connect()
