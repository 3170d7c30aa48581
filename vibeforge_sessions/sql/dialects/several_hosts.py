"""Connections to the first ready host of a URL that names several hosts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Dialect
from sqlalchemy.engine.interfaces import DBAPIConnection


def connect_to_ready_host(
    hosts_of: Callable[[Mapping[str, Any]], Sequence[tuple[str, int]]],
) -> Callable[..., DBAPIConnection | None]:
    """Return a `do_connect` listener that connects to the first host that is ready.

    It begins with the host to which it connected last.

    :param hosts_of: returns the hosts and ports in the parameters of a connection.
    """
    first = 0

    def connect(
        dialect: Dialect, _record: object, args: Sequence[Any], parameters: dict[str, Any]
    ) -> DBAPIConnection | None:
        nonlocal first
        failure: Exception | None = None
        hosts = hosts_of(parameters)
        for index in [*range(first, len(hosts)), *range(first)]:
            host, port = hosts[index]
            try:
                connection = dialect.connect(*args, **{**parameters, "host": host, "port": port})
                try:  # a Galera node that is not ready rejects a ROLLBACK, but not SELECT 1
                    connection.rollback()
                except BaseException:
                    connection.close()
                    raise
            except Exception as error:  # noqa: BLE001 (drivers and the operating system raise errors of many classes)
                failure = error
            else:
                first = index
                return connection
        if failure is not None:
            raise failure
        return None

    return connect
