"""Session stores of others, each in an environment of its own; nothing but the standard library in here."""

from __future__ import annotations

from typing import NamedTuple


class Peer(NamedTuple):
    """A store of others, and what its environment needs.

    :param contender: ``MODULE:CLASS``, for `benchmarks.worker`.
    :param requirements: what pip installs, pinned: the packages that are asked for, not what they pull in.
    :param place: ``"folder"``, or the name of the server whose database it is given.
    """

    name: str
    contender: str
    requirements: tuple[str, ...]
    place: str = "folder"


PEERS: tuple[Peer, ...] = (
    Peer(
        "google-adk",
        "benchmarks.peers.adk:ADK",
        ("google-adk==2.13.0", "sqlalchemy[asyncio]==2.1.9"),  # and not google-adk[db], which pulls in Spanner
    ),
    Peer(
        "google-adk PostgreSQL",
        "benchmarks.peers.adk:ADKPostgreSQL",
        ("google-adk==2.13.0", "sqlalchemy[asyncio]==2.1.9", "asyncpg==0.32.0"),
        "postgresql",
    ),
    Peer("agno", "benchmarks.peers.agno:Agno", ("agno==3.1.10", "sqlalchemy[asyncio]==2.1.9")),
)
