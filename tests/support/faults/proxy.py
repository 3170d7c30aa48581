"""A TCP proxy between clients and a database server that cuts connections at given messages.

    with Proxy(url) as proxy:
        engine = create_engine(proxy.url)
        …                                                  # undisturbed; proxy.messages lists the messages
        proxy.arm(Cut("server", message=3))                # the third message that the server sends from now on
        …

One thread processes all messages in order, so that a cut happens exactly at the given message.
"""

from __future__ import annotations

import contextlib
import math
import queue
import selectors
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Literal, NamedTuple, Self, get_args

from sqlalchemy import URL

from tests.support.faults.framing import FRAMINGS, Framing, Message, Side
from tests.support.servers.machine import free_port, wait_for

How = Literal["reset", "close", "mute"]
"""How a connection ends.

"reset": by RST, as after the death of a process or by a firewall; "close": by FIN; "mute": not at all, but no data is
transmitted any more, and neither end is notified.
"""

Entrance = Literal["open", "refused", "reset", "mute"]
"""What happens to new connections.

"open": they are forwarded; "refused": the port is closed; "reset": they are reset; "mute": they are accepted, and no
data is ever transmitted.
"""

_HOST: Final = "127.0.0.1"
_CHUNK: Final = 1 << 16
_PATIENCE: Final = 30.0
_OTHER: Final[dict[Side, Side]] = {"client": "server", "server": "client"}


@dataclass(frozen=True, slots=True)
class Cut:
    """A cut of a connection at a message or byte of one side, counted from the moment when it is armed."""

    side: Side
    """The sender of the counted messages or bytes."""
    message: int = 0
    """The number of the message, from 1. The whole message has arrived before the cut."""
    byte: int | None = None
    """Replaces the message: the number of bytes that are forwarded before the cut."""
    forwarded: bool = False
    """Whether the message is forwarded before the cut."""
    how: How = "reset"
    hold: float | None = None
    """Seconds for which the client's message and all its later data are held after the client's side was cut.

    The server receives them then, or when `Proxy.release` is called, like a statement that is still in transit when its
    client gives up.
    """
    then: Callable[[], object] | None = None
    """A function that is called after the end of the server's side and before the end of the client's side.

    The client notices the cut only afterwards.
    """

    def __str__(self) -> str:
        where = (
            f"the {self.side}'s message {self.message}"
            if self.byte is None
            else f"{self.byte} bytes of the {self.side}"
        )
        when = "after" if self.forwarded or self.byte is not None else "before"
        return f"{self.how} {when} {where}" + ("" if self.hold is None else ", which is held")


class Seen(NamedTuple):
    """A message that was forwarded or cut."""

    connection: int
    side: Side
    name: str
    size: int


class Proxy:
    """A listener on its own port that forwards all data to the server of a URL.

    Exceptions of `Cut.then` are raised at the end of the block.
    """

    def __init__(self, url: URL) -> None:
        self._framing = FRAMINGS[url.get_backend_name()]
        self._server = (url.host or _HOST, url.port or 0)
        self.port = free_port()
        self.url = url.set(host=_HOST, port=self.port)
        """URL of the server through this proxy."""
        self.messages: list[Seen] = []
        """Messages since the last call of `arm` or `reset`."""
        self.events: Counter[str] = Counter()
        """Counts: connections, cuts, resets and mutes of new connections, delivered and undeliverable held data."""
        self._cuts: list[Cut] = []
        self._counted: Counter[Side] = Counter()
        self._bytes: Counter[Side] = Counter()
        self._entrance: Entrance = "open"
        self._links: set[_Link] = set()
        self._failures: list[BaseException] = []
        self._selector = selectors.DefaultSelector()
        self._requests: queue.SimpleQueue[tuple[Callable[[], None], Future[None]]] = queue.SimpleQueue()
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._listener: socket.socket | None = None
        self._open = True
        self._thread = threading.Thread(target=self._serve, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._selector.register(self._wake_receiver, selectors.EVENT_READ, self._run_requests)
        self._listen()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._do(self._end)
        self._thread.join(_PATIENCE)
        self._selector.close()
        self._wake_receiver.close()
        self._wake_sender.close()
        if error is None and self._failures:
            raise self._failures[0]

    # --- commands of the tests ---

    def arm(self, *cuts: Cut) -> None:
        """Make these cuts, one after another; each counts from the moment of the previous cut."""

        def arm() -> None:
            self._cuts = list(cuts)
            self._counted.clear()
            self._bytes.clear()
            self.messages.clear()

        self._do(arm)

    def reset(self) -> None:
        """Make no cuts, and restart the counts of messages."""
        self.arm()

    @property
    def connections(self) -> int:
        """The number of current connections to the server."""
        return sum(link.server is not None for link in tuple(self._links))

    @property
    def pending_cuts(self) -> int:
        """The number of cuts that have not been made yet."""
        return len(self._cuts)

    def set_entrance(self, entrance: Entrance) -> None:
        """Set what happens to new connections."""

        def change() -> None:
            self._entrance = entrance
            self._close_listener()
            self._listen()

        self._do(change)

    def cut_all(self, how: How = "reset") -> None:
        """Cut both sides of every connection."""
        self._do(lambda: self._cut(self._links, how))

    def blackhole(self) -> None:
        """Discard all data from now on, on existing and new connections."""
        self.set_entrance("mute")
        self._do(lambda: self._cut(self._links, "mute"))

    def release(self) -> None:
        """Deliver the held data; return when the server has processed it."""
        self._do(lambda: self._deliver(math.inf))
        wait_for(
            lambda: not any(link.is_ending for link in tuple(self._links)), _PATIENCE, "the server to end its side"
        )

    def heal(self) -> None:
        """Forward new connections, and end all mute and cut connections on the server's side too."""
        self.set_entrance("open")
        self._do(lambda: self._cut({link for link in self._links if link.silent}, "reset"))
        self.release()

    # --- thread of the proxy ---

    def _do(self, change: Callable[[], object]) -> None:
        """Execute a change in the proxy's thread, and wait until it is done."""
        if threading.current_thread() is self._thread:  # in `Cut.then`
            change()
            return
        done: Future[None] = Future()
        self._requests.put((lambda: void(change()), done))
        self._wake_sender.send(b"!")
        done.result(_PATIENCE)

    def _serve(self) -> None:
        while self._open:
            held = [link.due for link in self._links if link.held is not None]
            timeout = max(0.0, min(held) - time.monotonic()) if held else None
            for key, _ in self._selector.select(timeout):
                if key.fileobj.fileno() != -1:  # type: ignore[union-attr] # an earlier event may have closed it
                    self.call(key.data)
            self._deliver(time.monotonic())

    def _deliver(self, now: float) -> None:
        for link in tuple(self._links):
            if link.held is not None and link.due <= now:
                link.deliver()

    def _cut(self, links: set[_Link], how: How) -> None:
        for link in tuple(links):
            link.cut(how, None, b"")

    def _run_requests(self) -> None:
        self._wake_receiver.recv(_CHUNK)
        with contextlib.suppress(queue.Empty):
            while True:
                change, done = self._requests.get_nowait()
                try:
                    change()
                except BaseException as error:  # noqa: BLE001 (raised in the thread that requested the change)
                    done.set_exception(error)
                else:
                    done.set_result(None)

    def _end(self) -> None:
        self._open = False
        self._close_listener()
        for link in tuple(self._links):
            link.close("reset")

    def _listen(self) -> None:
        """Bind the port for every entrance, so that no other process receives it."""
        self._listener = listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((_HOST, self.port))
        if self._entrance != "refused":
            listener.listen(128)
            self._selector.register(listener, selectors.EVENT_READ, self._accept)

    def _close_listener(self) -> None:
        if self._listener is not None:
            with contextlib.suppress(KeyError):
                self._selector.unregister(self._listener)
            self._listener.close()

    def _accept(self) -> None:
        assert self._listener is not None
        client, _ = self._listener.accept()
        self.events["connections"] += 1
        if self._entrance == "reset":
            self.events["resets"] += 1
            close_socket(client, "reset")
            return
        try:
            server = None if self._entrance == "mute" else socket.create_connection(self._server, _PATIENCE)
        except OSError:  # the server is down
            close_socket(client, "reset")
            return
        if server is None:
            self.events["mutes"] += 1
        self._links.add(_Link(self, self.events["connections"], client, server, self._framing()))

    # --- calls of the links ---

    def register(self, sock: socket.socket, then: Callable[[], None]) -> None:
        sock.settimeout(_PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(sock, selectors.EVENT_READ, then)

    def unregister(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)

    def forget_link(self, link: _Link) -> None:
        self._links.discard(link)

    def count(self, link: _Link, side: Side, message: Message) -> tuple[Cut, int] | None:
        """Count a message; return the cut that is due, and how many bytes of the message are forwarded before it."""
        self.messages.append(Seen(link.number, side, message.name, len(message.data)))
        self._counted[side] += 1
        before = self._bytes[side]
        self._bytes[side] += len(message.data)
        if not self._cuts or self._cuts[0].side != side:
            return None
        cut = self._cuts[0]
        if cut.byte is not None:
            due, share = self._bytes[side] > cut.byte, cut.byte - before
        else:
            due, share = self._counted[side] == cut.message, len(message.data) if cut.forwarded else 0
        if not due:
            return None
        self._cuts.pop(0)
        self._counted.clear()
        self._bytes.clear()
        self.events["cuts"] += 1
        return cut, share

    def call(self, then: Callable[[], object]) -> None:
        try:
            then()
        except BaseException as error:  # noqa: BLE001 (raised at the end of the block)
            self._failures.append(error)


class _Link:
    """A client's connection and its connection to the server; either may have ended."""

    def __init__(
        self, proxy: Proxy, number: int, client: socket.socket, server: socket.socket | None, framing: Framing
    ) -> None:
        self.number = number
        self.client: socket.socket | None = client
        self.server = server
        self.silent = server is None
        self.held: bytes | None = None
        self.due = 0.0
        self._proxy = proxy
        self._framing = framing
        self._buffers: dict[Side, bytearray] = {"client": bytearray(), "server": bytearray()}
        for side in get_args(Side):
            sock = self._socket(side)
            if sock is not None:
                proxy.register(sock, lambda side=side: self._read(side))  # type: ignore[misc]

    @property
    def is_ending(self) -> bool:
        """Whether the client's side has ended and the server's side has not."""
        return self.client is None and not self.silent

    def _socket(self, side: Side) -> socket.socket | None:
        return self.client if side == "client" else self.server

    def _read(self, side: Side) -> None:
        sock = self._socket(side)
        assert sock is not None
        try:
            data = sock.recv(_CHUNK)
            how: How = "close"
        except OSError:
            data, how = b"", "reset"
        if not data:
            self._ended(side, how)
        elif not self.silent and self._socket(_OTHER[side]) is not None:
            self._buffers[side] += data
            try:
                self._pass_on(side)
            except ValueError:  # the boundaries of the messages are unknown from here on
                self.close("reset")
                raise

    def _ended(self, side: Side, how: How) -> None:
        self._drop(side, how)
        if not self.silent:  # a mute connection notifies neither end
            self._end(_OTHER[side], how)
        if self.client is None and self.server is None:
            self._proxy.forget_link(self)

    def _pass_on(self, side: Side) -> None:
        buffer = self._buffers[side]
        passed = bytearray()
        while (message := self._framing.take(side, buffer)) is not None:
            due = self._proxy.count(self, side, message)
            if due is None:
                passed += message.data
                continue
            cut, share = due
            self._send(_OTHER[side], passed + message.data[:share])
            self.cut(cut.how, cut, message.data[share:])
            return
        self._send(_OTHER[side], passed)

    def _send(self, side: Side, data: bytes | bytearray) -> bool:
        sock = self._socket(side)
        if sock is None or not data:
            return False
        try:
            sock.sendall(data)
        except OSError:  # the connection has ended; the next read handles that
            return False
        return True

    def cut(self, how: How, cut: Cut | None, rest: bytes) -> None:
        """Cut the connection.

        :param rest: data of the client that has arrived and was not forwarded.
        """
        if how == "mute":
            self.silent = True
        elif cut is not None and cut.hold is not None:
            assert cut.side == "client", "only a message of the client can be held"
            self.held = rest + bytes(self._buffers["client"]) + self._arrived()
            self.due = time.monotonic() + cut.hold
        else:
            self._end("server", how)
        if cut is not None and cut.then is not None:
            self._proxy.call(cut.then)
        if how != "mute":
            self.silent = False
            self._end("client", how)
        if self.client is None and self.server is None:
            self._proxy.forget_link(self)

    def deliver(self) -> None:
        """Send the held data to the server, followed by the end of the client."""
        assert self.held is not None
        held, self.held = self.held, None
        self._proxy.events["delivered" if self._send("server", held) else "undeliverable"] += 1
        self._end("server", "close")

    def close(self, how: How) -> None:
        """Close both sides."""
        for side in get_args(Side):
            self._end(side, how)
            self._drop(side, how)
        self._proxy.forget_link(self)

    def _arrived(self) -> bytes:
        """Return the client's data that has arrived and was not read yet."""
        assert self.client is not None
        self.client.setblocking(False)
        with contextlib.suppress(OSError):
            return self.client.recv(_CHUNK)
        return b""

    def _end(self, side: Side, how: How) -> None:
        sock = self._socket(side)
        if sock is None:
            return
        if side == "server":
            self._give_up()
        if side == "server" and how == "close":  # the server reads the data, answers, and closes its side
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
            return
        self._drop(side, how)

    def _drop(self, side: Side, how: How) -> None:
        sock = self._socket(side)
        if sock is None:
            return
        self._proxy.unregister(sock)
        close_socket(sock, how)
        if side == "client":
            self.client = None
        else:
            self._give_up()
            self.server = None

    def _give_up(self) -> None:
        if self.held is not None:
            self.held = None
            self._proxy.events["undeliverable"] += 1


def close_socket(sock: socket.socket, how: How) -> None:
    """Close a socket by RST or by FIN."""
    if how == "reset":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def void(_: object) -> None:
    """Ignore the argument."""
