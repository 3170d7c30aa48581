"""A TCP proxy between clients and a database server that cuts connections where it is told, and tells what it saw.

    with Proxy(url) as proxy:
        engine = create_engine(proxy.url)
        …                                                  # undisturbed; proxy.messages tells what went by
        proxy.arm(Cut("server", message=3))                # the third message from now on that the server sends
        …

Everything happens in one thread, message by message, so that a cut is where it was asked for and nowhere else.
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
"""How a connection ends: by RST, as with a process that died or a firewall; by FIN; or not at all, and nothing comes
any more, in either direction, without either end being told."""

Entrance = Literal["open", "refused", "reset", "mute"]
"""What becomes of new connections: they go through; nobody listens; they are reset at once; they are accepted, and
nothing is ever said."""

_HOST: Final = "127.0.0.1"
_CHUNK: Final = 1 << 16
_PATIENCE: Final = 30.0
_OTHER: Final[dict[Side, Side]] = {"client": "server", "server": "client"}


@dataclass(frozen=True, slots=True)
class Cut:
    """Where and how to cut a connection: at a message or a byte of one side, counted from the moment it is armed."""

    side: Side
    """Who sends what is counted."""
    message: int = 0
    """The number of the message, from 1; it has come whole by then."""
    byte: int | None = None
    """In place of a message: after so many bytes were sent on."""
    forwarded: bool = False
    """Whether that message is sent on before the cut."""
    how: How = "reset"
    hold: float | None = None
    """The message of a client, and what it has sent after it, reaches the server so many seconds after the client's
    side was cut, or when `Proxy.release` says so: a statement that was on its way when its client gave it up."""
    then: Callable[[], object] | None = None
    """Is called between the end of the server's side and that of the client's, who only then begins to wonder."""

    def __str__(self) -> str:
        where = (
            f"the {self.side}'s message {self.message}"
            if self.byte is None
            else f"{self.byte} bytes of the {self.side}"
        )
        when = "after" if self.forwarded or self.byte is not None else "before"
        return f"{self.how} {when} {where}" + ("" if self.hold is None else ", which is held")


class Seen(NamedTuple):
    """A message that went by, or was cut off."""

    connection: int
    side: Side
    name: str
    size: int


class Proxy:
    """Listens on a port of its own and passes on what comes, to the server that a URL names.

    What `Cut.then` raises is raised at the end of the block.
    """

    def __init__(self, url: URL) -> None:
        self._framing = FRAMINGS[url.get_backend_name()]
        self._server = (url.host or _HOST, url.port or 0)
        self.port = free_port()
        self.url = url.set(host=_HOST, port=self.port)
        """The server's URL, by way of here."""
        self.messages: list[Seen] = []
        """What went by since it was armed, or told to `forget`."""
        self.happened: Counter[str] = Counter()
        """connections, cuts, resets and mutes (of new connections), delivered and undeliverable (what was held)."""
        self._cuts: list[Cut] = []
        self._counted: Counter[Side] = Counter()
        self._bytes: Counter[Side] = Counter()
        self._entrance: Entrance = "open"
        self._links: set[_Link] = set()
        self._failures: list[BaseException] = []
        self._selector = selectors.DefaultSelector()
        self._asked: queue.SimpleQueue[tuple[Callable[[], None], Future[None]]] = queue.SimpleQueue()
        self._bell, self._wake = socket.socketpair()
        self._listener: socket.socket | None = None
        self._open = True
        self._thread = threading.Thread(target=self._serve, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._selector.register(self._bell, selectors.EVENT_READ, self._answer)
        self._listen()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._do(self._end)
        self._thread.join(_PATIENCE)
        self._selector.close()
        self._bell.close()
        self._wake.close()
        if error is None and self._failures:
            raise self._failures[0]

    # --- what it is told ---

    def arm(self, *cuts: Cut) -> None:
        """Have these cuts made, one after another; each counts from the moment at which the one before was made."""

        def arm() -> None:
            self._cuts = list(cuts)
            self._counted.clear()
            self._bytes.clear()
            self.messages.clear()

        self._do(arm)

    def forget(self) -> None:
        """Cut nothing, and count the messages anew."""
        self.arm()

    @property
    def connections(self) -> int:
        """How many connections it has to the server now."""
        return sum(link.server is not None for link in tuple(self._links))

    @property
    def to_come(self) -> int:
        """How many cuts have not been made yet."""
        return len(self._cuts)

    def let(self, entrance: Entrance) -> None:
        """Say what becomes of new connections."""

        def let() -> None:
            self._entrance = entrance
            self._close_listener()
            self._listen()

        self._do(let)

    def cut_all(self, how: How = "reset") -> None:
        """Cut every connection, on both of its sides."""
        self._do(lambda: self._cut(self._links, how))

    def blackhole(self) -> None:
        """Swallow all that comes, from now on, on all connections, new ones too."""
        self.let("mute")
        self._do(lambda: self._cut(self._links, "mute"))

    def release(self) -> None:
        """Let the server have what is held; return when it is done with it."""
        self._do(lambda: self._deliver(math.inf))
        wait_for(
            lambda: not any(link.is_ending for link in tuple(self._links)), _PATIENCE, "the server to end its side"
        )

    def heal(self) -> None:
        """Let new connections through; end those that are mute, and all that was cut, on the server's side, too."""
        self.let("open")
        self._do(lambda: self._cut({link for link in self._links if link.silent}, "reset"))
        self.release()

    # --- its thread ---

    def _do(self, change: Callable[[], object]) -> None:
        """Do something in the thread to which everything belongs, and wait until it is done."""
        if threading.current_thread() is self._thread:  # in `Cut.then`
            change()
            return
        done: Future[None] = Future()
        self._asked.put((lambda: void(change()), done))
        self._wake.send(b"!")
        done.result(_PATIENCE)

    def _serve(self) -> None:
        while self._open:
            held = [link.due for link in self._links if link.held is not None]
            timeout = max(0.0, min(held) - time.monotonic()) if held else None
            for key, _ in self._selector.select(timeout):
                if key.fileobj.fileno() != -1:  # type: ignore[union-attr] # an event before it may have closed it
                    self.call(key.data)
            self._deliver(time.monotonic())

    def _deliver(self, now: float) -> None:
        for link in tuple(self._links):
            if link.held is not None and link.due <= now:
                link.deliver()

    def _cut(self, links: set[_Link], how: How) -> None:
        for link in tuple(links):
            link.cut(how, None, b"")

    def _answer(self) -> None:
        self._bell.recv(_CHUNK)
        with contextlib.suppress(queue.Empty):
            while True:
                change, done = self._asked.get_nowait()
                try:
                    change()
                except BaseException as error:  # noqa: BLE001 (it is raised where it was asked for)
                    done.set_exception(error)
                else:
                    done.set_result(None)

    def _end(self) -> None:
        self._open = False
        self._close_listener()
        for link in tuple(self._links):
            link.close("reset")

    def _listen(self) -> None:
        """Keep the port, in any case, so that nobody else is given it."""
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
        self.happened["connections"] += 1
        if self._entrance == "reset":
            self.happened["resets"] += 1
            end(client, "reset")
            return
        try:
            server = None if self._entrance == "mute" else socket.create_connection(self._server, _PATIENCE)
        except OSError:  # the server is down
            end(client, "reset")
            return
        if server is None:
            self.happened["mutes"] += 1
        self._links.add(_Link(self, self.happened["connections"], client, server, self._framing()))

    # --- for its links ---

    def watch(self, sock: socket.socket, then: Callable[[], None]) -> None:
        sock.settimeout(_PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(sock, selectors.EVENT_READ, then)

    def unwatch(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)

    def forget_link(self, link: _Link) -> None:
        self._links.discard(link)

    def count(self, link: _Link, side: Side, message: Message) -> tuple[Cut, int] | None:
        """Count a message; return the cut that is to be made now, and how much of the message is to be sent on."""
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
        self.happened["cuts"] += 1
        return cut, share

    def call(self, then: Callable[[], object]) -> None:
        try:
            then()
        except BaseException as error:  # noqa: BLE001 (it is raised at the end)
            self._failures.append(error)


class _Link:
    """A client's connection and the one to the server that belongs to it; either may have ended."""

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
                proxy.watch(sock, lambda side=side: self._read(side))  # type: ignore[misc]

    @property
    def is_ending(self) -> bool:
        """Whether its client has gone, and the server not yet."""
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
            except ValueError:  # nobody knows any more where its messages end
                self.close("reset")
                raise

    def _ended(self, side: Side, how: How) -> None:
        self._drop(side, how)
        if not self.silent:  # in silence nobody is told
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
        except OSError:  # it has ended, as its next reading tells
            return False
        return True

    def cut(self, how: How, cut: Cut | None, rest: bytes) -> None:
        """Cut it now.

        :param rest: what has come of the client's, and was not sent on.
        """
        if how == "mute":
            self.silent = True
        elif cut is not None and cut.hold is not None:
            assert cut.side == "client", "a client's message is held"
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
        """Let the server have what was held, and then the end of its client."""
        assert self.held is not None
        held, self.held = self.held, None
        self._proxy.happened["delivered" if self._send("server", held) else "undeliverable"] += 1
        self._end("server", "close")

    def close(self, how: How) -> None:
        """Leave nothing open."""
        for side in get_args(Side):
            self._end(side, how)
            self._drop(side, how)
        self._proxy.forget_link(self)

    def _arrived(self) -> bytes:
        """Return what the client has sent besides, and nobody has read yet."""
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
        if side == "server" and how == "close":  # it reads what has come, answers, and then closes its side itself
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
            return
        self._drop(side, how)

    def _drop(self, side: Side, how: How) -> None:
        sock = self._socket(side)
        if sock is None:
            return
        self._proxy.unwatch(sock)
        end(sock, how)
        if side == "client":
            self.client = None
        else:
            self._give_up()
            self.server = None

    def _give_up(self) -> None:
        if self.held is not None:
            self.held = None
            self._proxy.happened["undeliverable"] += 1


def end(sock: socket.socket, how: How) -> None:
    """Close a connection, by RST or by FIN."""
    if how == "reset":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def void(_: object) -> None:
    """Return nothing."""
