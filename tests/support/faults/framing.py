"""Where the messages of PostgreSQL's and MariaDB's protocols end, as far as a proxy has to know."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final, Literal, NamedTuple

Side = Literal["client", "server"]
"""Who has sent it."""

_SHOWN: Final = 60


class Message(NamedTuple):
    """A message, and a name for people: its type, and the beginning of its statement."""

    data: bytes
    name: str


class Framing(ABC):
    """Takes the messages of one connection apart; one object for both of its directions."""

    @abstractmethod
    def take(self, side: Side, buffer: bytearray) -> Message | None:
        """Take the first message off the buffer; None while it is not there to its end."""


class PostgresFraming(Framing):
    """A byte for the type and four for the length; the client's first messages have no type.

    A server answers a request for encryption with a single byte. Ours says no: what is encrypted cannot be looked into.
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
        self._owes_a_byte = False

    def take(self, side: Side, buffer: bytearray) -> Message | None:
        if side == "server" and self._owes_a_byte:
            return self._take_answer(buffer)
        typed = side == "server" or self._started
        taken = _take(
            buffer, 1 + int.from_bytes(buffer[1:5]) if typed else int.from_bytes(buffer[:4]), 5 if typed else 8
        )
        if taken is None:
            return None
        if typed:
            return Message(taken, self._name(side, taken))
        code = int.from_bytes(taken[4:8])
        self._owes_a_byte = code in self._ENCRYPTION
        self._started = not self._owes_a_byte
        return Message(taken, self._ENCRYPTION.get(code, "Startup"))

    def _take_answer(self, buffer: bytearray) -> Message | None:
        taken = _take(buffer, 1, 1)
        if taken is None:
            return None
        if taken != b"N":
            raise ValueError("the server encrypts: add sslmode=disable to the URL")
        self._owes_a_byte = False
        return Message(taken, "no encryption")

    def _name(self, side: Side, data: bytes) -> str:
        kind = self._TYPES[side].get(data[:1], repr(data[:1]))
        if kind in {"Query", "Parse"} and side == "client":
            start = 5 if kind == "Query" else data.index(0, 5) + 1
            return f"{kind} {_shown(data[start:])}"
        return f"{kind} {_shown(data[5:])}" if kind == "CommandComplete" else kind


class MariaDBFraming(Framing):
    """Three bytes for the length and one that counts within a command; a command begins with 0."""

    _COMMANDS: Final = {0x01: "Quit", 0x0E: "Ping", 0x16: "Prepare", 0x17: "Execute", 0x19: "Close"}
    _QUERY: Final = 0x03
    _ANSWERS: Final = {0x00: "OK", 0xFE: "EOF", 0xFF: "Error"}

    def __init__(self) -> None:
        self._greeted = False

    def take(self, side: Side, buffer: bytearray) -> Message | None:
        taken = _take(buffer, 4 + int.from_bytes(buffer[:3], "little"), 4)
        if taken is None:
            return None
        if side == "server":
            greeting, self._greeted = not self._greeted, True
            return Message(taken, "Greeting" if greeting else self._ANSWERS.get(int.from_bytes(taken[4:5]), "Row"))
        if taken[3] or len(taken) == 4:  # the client's part of the login, or more of a statement of 16 MB
            return Message(taken, "Login")
        if taken[4] == self._QUERY:
            return Message(taken, _shown(taken[5:]))
        return Message(taken, self._COMMANDS.get(taken[4], f"Command {taken[4]}"))


FRAMINGS: Final[dict[str, type[Framing]]] = {
    "postgresql": PostgresFraming,
    "mariadb": MariaDBFraming,
    "mysql": MariaDBFraming,
}
"""By the name of SQLAlchemy's dialect."""


def _take(buffer: bytearray, length: int, header: int) -> bytes | None:
    """Take so many bytes off the buffer, once the header that tells their number is there and they are, too."""
    if len(buffer) < header or len(buffer) < length:
        return None
    taken = bytes(buffer[:length])
    del buffer[:length]
    return taken


def _shown(data: bytes) -> str:
    return data.partition(b"\0")[0][:_SHOWN].decode(errors="replace")
