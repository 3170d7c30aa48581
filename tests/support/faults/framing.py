"""Message boundaries of the PostgreSQL and MariaDB protocols, as far as the proxy needs them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final, Literal, NamedTuple

Side = Literal["client", "server"]
"""The sender of a message."""

_SHOWN: Final = 60


class Message(NamedTuple):
    """A message and its readable name: its type, and the beginning of its statement."""

    data: bytes
    name: str


class Framing(ABC):
    """Splits the data of one connection into messages; one object handles both directions."""

    @abstractmethod
    def take(self, side: Side, buffer: bytearray) -> Message | None:
        """Remove the first message from the buffer and return it; return None while it is incomplete."""


class PostgresFraming(Framing):
    """Messages with one byte for the type and four for the length; the client's first messages have no type.

    The server answers a request for encryption with a single byte. The test servers decline, because encrypted messages
    cannot be read.
    """

    _ENCRYPTION: Final = {80877103: "SSLRequest", 80877104: "GSSENCRequest"}
    _TYPES: Final = {
        "client": {
            b"B": "Bind", b"C": "Close", b"D": "Describe", b"E": "Execute", b"H": "Flush", b"P": "Parse",
            b"p": "Password", b"Q": "Query", b"S": "Sync", b"X": "Terminate",
        },
        "server": {
            b"1": "ParseComplete", b"2": "BindComplete", b"3": "CloseComplete", b"C": "CommandComplete",
            b"D": "DataRow", b"E": "ErrorResponse", b"K": "BackendKeyData", b"N": "NoticeResponse", b"n": "NoData",
            b"R": "Authentication", b"S": "ParameterStatus", b"t": "ParameterDescription", b"T": "RowDescription",
            b"Z": "ReadyForQuery",
        },
    }  # fmt: skip

    def __init__(self) -> None:
        self._started = False
        self._expects_encryption_answer = False

    def take(self, side: Side, buffer: bytearray) -> Message | None:
        if side == "server" and self._expects_encryption_answer:
            return self._take_answer(buffer)
        typed = side == "server" or self._started
        data = _take(
            buffer, 1 + int.from_bytes(buffer[1:5]) if typed else int.from_bytes(buffer[:4]), 5 if typed else 8
        )
        if data is None:
            return None
        if typed:
            return Message(data, self._name(side, data))
        code = int.from_bytes(data[4:8])
        self._expects_encryption_answer = code in self._ENCRYPTION
        self._started = not self._expects_encryption_answer
        return Message(data, self._ENCRYPTION.get(code, "Startup"))

    def _take_answer(self, buffer: bytearray) -> Message | None:
        data = _take(buffer, 1, 1)
        if data is None:
            return None
        if data != b"N":
            raise ValueError("the server encrypts its messages: add sslmode=disable to the URL")
        self._expects_encryption_answer = False
        return Message(data, "no encryption")

    def _name(self, side: Side, data: bytes) -> str:
        kind = self._TYPES[side].get(data[:1], repr(data[:1]))
        if kind in {"Query", "Parse"} and side == "client":
            start = 5 if kind == "Query" else data.index(0, 5) + 1
            return f"{kind} {_shown(data[start:])}"
        return f"{kind} {_shown(data[5:])}" if kind == "CommandComplete" else kind


class MariaDBFraming(Framing):
    """Messages with three bytes for the length and one sequence number, which is 0 at the start of a command."""

    _COMMANDS: Final = {0x01: "Quit", 0x0E: "Ping", 0x16: "Prepare", 0x17: "Execute", 0x19: "Close"}
    _QUERY: Final = 0x03
    _ANSWERS: Final = {0x00: "OK", 0xFE: "EOF", 0xFF: "Error"}

    def __init__(self) -> None:
        self._greeted = False

    def take(self, side: Side, buffer: bytearray) -> Message | None:
        data = _take(buffer, 4 + int.from_bytes(buffer[:3], "little"), 4)
        if data is None:
            return None
        if side == "server":
            greeting, self._greeted = not self._greeted, True
            return Message(data, "Greeting" if greeting else self._ANSWERS.get(int.from_bytes(data[4:5]), "Row"))
        if data[3] or len(data) == 4:  # a message of the login, or a continuation of a statement above 16 MB
            return Message(data, "Login")
        if data[4] == self._QUERY:
            return Message(data, _shown(data[5:]))
        return Message(data, self._COMMANDS.get(data[4], f"Command {data[4]}"))


FRAMINGS: Final[dict[str, type[Framing]]] = {
    "postgresql": PostgresFraming,
    "mariadb": MariaDBFraming,
    "mysql": MariaDBFraming,
}
"""Framings by the name of the SQLAlchemy dialect."""


def _take(buffer: bytearray, length: int, header: int) -> bytes | None:
    """Remove a message from the buffer, once its header and all its bytes have arrived."""
    if len(buffer) < header or len(buffer) < length:
        return None
    data = bytes(buffer[:length])
    del buffer[:length]
    return data


def _shown(data: bytes) -> str:
    return data.partition(b"\0")[0][:_SHOWN].decode(errors="replace")
