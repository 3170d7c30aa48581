"""A private Galera cluster: several MariaDB servers with the same data, each of which accepts writes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import pymysql  # type: ignore[import-untyped]
import sqlalchemy as sa

from .machine import free_port, wait_for
from .mariadb import MariaDBServer
from .process import ServerUnavailable, find_program, several_hosts

_TIMEOUT = 60.0
_ATTEMPTS = 5
#: A silent node is excluded after 2 s; Galera's default is 5 s, and the outage lasts a second longer.
QUICK = "evs.suspect_timeout=PT2S;evs.keepalive_period=PT0.5S"
_OPTIONS = (
    "--binlog-format=ROW",
    "--innodb-autoinc-lock-mode=2",
    "--innodb-buffer-pool-size=64M",
    "--wsrep-on=ON",
    "--wsrep-sst-method=rsync",
    "--wsrep-slave-threads=2",
)


class GaleraNode(MariaDBServer):
    """A node of a `GaleraCluster`."""

    prefix: ClassVar[str] = "vfs-ga-"

    def __init__(self, cluster: GaleraCluster, name: str, *, durable: bool, args: Sequence[str]) -> None:
        super().__init__(durable=durable, args=args)
        self.name = name
        self._cluster = cluster
        self._provider = _find_provider()
        find_program("rsync", of="Galera", package="rsync")
        self._group_port = 0
        self._first = False
        self._position: str | None = None
        self.password = cluster.password

    @property
    def group_address(self) -> str | None:
        """Address for the other nodes, once the node has been started."""
        return f"127.0.0.1:{self._group_port}" if self._group_port else None

    def status(self) -> Mapping[str, str]:
        """Return the node's status: ``ready``, ``cluster_status``, ``cluster_size``, ``local_state_comment`` …"""
        rows = self.query("SHOW STATUS LIKE 'wsrep%'")
        return {name.removeprefix("wsrep_"): value for name, value in rows}

    def isolate(self) -> None:
        """Isolate the node from the others, but not from clients; return when it has noticed."""
        self._set_isolated(1)
        wait_for(lambda: self.status()["ready"] == "OFF", _TIMEOUT, f"{self.name} to notice its isolation")

    def reunite(self) -> None:
        """End the isolation; return when the node has received the missing data."""
        self._set_isolated(0)
        self.wait_until_ready()

    def rejoin(self) -> None:
        """Start the node after `kill9` or `shut_down`; return when it has received the missing data."""
        # A node that returns before the others have noticed its absence blocks them all for 20 s.
        others = [node for node in self._cluster.nodes if node is not self and node.is_running()]
        wait_for(
            lambda: all(node.status()["cluster_size"] == str(len(others)) for node in others),
            _TIMEOUT,
            "the others to notice the end",
        )
        self._first = False
        self._position = self._recovered_position()
        self._launch()

    def bootstrap(self) -> None:
        """Start as the first node of the cluster, after all nodes have ended."""
        state = self._data / "grastate.dat"
        if state.exists():
            state.write_text(state.read_text().replace("safe_to_bootstrap: 0", "safe_to_bootstrap: 1"))
        self._first = True
        self._position = self._recovered_position() if state.exists() else None
        self._launch()

    def wait_until_ready(self) -> None:
        """Return when the node is synchronized with the cluster."""
        wait_for(self._is_ready, _TIMEOUT, f"{self.name} to be ready")

    def kill9(self) -> None:
        # The programs that transfer data from other nodes are in its process group, but some are not its children.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._wait_until_ended()

    def _install(self) -> None:
        if self._first:
            super()._install()
            return
        # All data comes from the first node.
        for folder in (self._data, self._temporary):
            folder.mkdir(mode=0o700)
            self._hand_over(folder)

    def _launch_on_a_free_port(self) -> None:
        self._group_port, self._ist_port, self._sst_port = (free_port() for _ in range(3))
        super()._launch_on_a_free_port()

    def _launch(self) -> None:
        for attempt in range(1, _ATTEMPTS + 1):
            before = len(self.log)
            try:
                return super()._launch()
            except ServerUnavailable:
                # On a busy machine Galera may look up one of its threads before that thread has begun.
                if attempt == _ATTEMPTS or "thread schedparams" not in self.log[before:]:
                    raise
        raise AssertionError("unreachable")

    def _is_ready(self) -> bool:
        try:
            status = self.status()
        except pymysql.err.OperationalError:
            return False
        return status["local_state_comment"] == "Synced" and status["ready"] == "ON"

    def _command(self) -> list[str]:
        others = [node.group_address for node in self._cluster.nodes if node is not self]
        address = "" if self._first else ",".join(filter(None, others))
        settings = self._write_secret("my.cnf", "")  # replaces the system's settings
        command = [
            word
            for word in super()._command()
            # Accounts are part of the data from the other nodes.
            if word != "--no-defaults" and (self._first or not word.startswith("--init-file="))
        ]
        options = [
            f"gmcast.listen_addr=tcp://{self.group_address}",
            f"ist.recv_addr=127.0.0.1:{self._ist_port}",
            "gcache.size=32M",
            self._cluster.provider_options,
        ]
        command[1:1] = [f"--defaults-file={settings}"]
        return [
            *command,
            *_OPTIONS,
            f"--wsrep-provider={self._provider}",
            f"--wsrep-cluster-name={self._cluster.name}",
            f"--wsrep-cluster-address=gcomm://{address}",
            f"--wsrep-node-name={self.name}",
            f"--wsrep-node-address={self.group_address}",
            f"--wsrep-node-incoming-address=127.0.0.1:{self.port}",
            f"--wsrep-sst-receive-address=127.0.0.1:{self._sst_port}",
            "--wsrep-provider-options=" + ";".join(options),
            *([f"--wsrep-start-position={self._position}"] if self._position else []),
        ]

    def _recovered_position(self) -> str | None:
        """Return the position of the node's own data, so that the others send only what came after it."""
        before = len(self.log)
        self._run(*self._command(), "--wsrep-recover")
        found: list[str] = re.findall(r"Recovered position: (\S+)", self.log[before:])
        return found[-1] if found else None

    def _set_isolated(self, isolated: int) -> None:
        self.query(f"SET GLOBAL wsrep_provider_options = 'gmcast.isolate={isolated}'")

    def query(self, *statements: str) -> Sequence[Sequence[Any]]:
        """Run statements as the administrator on this node, even if it is not ready; return the last one's rows."""
        # Not through SQLAlchemy, whose first ROLLBACK a node rejects while it is not ready.
        connection = pymysql.connect(host="127.0.0.1", port=self.port, user=self.url.username, password=self.password)
        with contextlib.closing(connection), connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return list(cursor.fetchall())


class GaleraCluster:
    """A cluster: ``with GaleraCluster() as cluster: create_engine(cluster.url())``.

    ``provider_options`` are options of Galera, such as `QUICK`. ``args`` are further options of ``mariadbd``.
    ``durable`` has the meaning of `MariaDBServer`: without it, a killed node receives its lost data from the other
    nodes.
    """

    def __init__(
        self, size: int = 3, *, durable: bool = False, provider_options: str = "", args: Sequence[str] = ()
    ) -> None:
        self.provider_options = provider_options
        self.password = os.urandom(12).hex()
        self.name = f"vfs-{os.urandom(4).hex()}"
        self.nodes: list[GaleraNode] = []
        for number in range(1, size + 1):
            self.nodes.append(GaleraNode(self, f"node{number}", durable=durable, args=args))

    def start(self) -> Self:
        try:
            for node in self.nodes:
                node._first = node is self.nodes[0]
                node.start()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def url(self, database: str | None = None, drivername: str = "mariadb+pymysql", *, first: int = 0) -> sa.URL:
        """Return the URL of all nodes, beginning with one of them."""
        nodes = self.nodes[first:] + self.nodes[:first]
        url = nodes[0].url.set(drivername=drivername, database=database)
        return several_hosts(url, [f"127.0.0.1:{node.port}" for node in nodes])

    def wait_until_whole(self) -> None:
        """Return when all running nodes have found each other and have all data."""
        running = [node for node in self.nodes if node.is_running()]
        size = str(len(running))
        for node in running:
            wait_for(lambda: node.status()["cluster_size"] == size, _TIMEOUT, f"{node.name} to find the others")  # noqa: B023
            node.wait_until_ready()


def _find_provider() -> Path:
    for folder in (Path("/usr/lib"), Path("/usr/lib64")):
        for found in folder.glob("galera*/libgalera_smm.so"):
            return found
    raise ServerUnavailable("no Galera found: libgalera_smm.so is not installed (Debian: galera-4)")
