"""Session stores of others, each in an environment of its own. Nothing but the standard library in here."""

from __future__ import annotations

from typing import NamedTuple


class Peer(NamedTuple):
    """A peer, and what its environment needs.

    :param requirements: what pip installs, pinned: the peer, and what it needs and does not ask for by itself.
    :param place: ``folder``, or the kind of server on which it gets the URL of an empty database.
    """

    name: str
    contender: str
    requirements: tuple[str, ...]
    place: str = "folder"


LANGGRAPH = ("langgraph-checkpoint-sqlite==3.1.2", "langgraph-checkpoint-postgres==3.2.0", "psycopg[binary]==3.3.9")
PEERS: tuple[Peer, ...] = (
    Peer("openai-agents SQLite", "benchmarks.peers.openai_agents:SQLite", ("openai-agents[sqlalchemy]==0.24.0",)),
    Peer(
        "openai-agents SQLAlchemy",
        "benchmarks.peers.openai_agents:SQLAlchemy",
        ("openai-agents[sqlalchemy]==0.24.0", "sqlalchemy==2.1.9", "aiosqlite==0.22.1"),
    ),
    Peer("langgraph SQLite", "benchmarks.peers.langgraph:SQLite", LANGGRAPH),
    Peer("langgraph PostgreSQL", "benchmarks.peers.langgraph:PostgreSQL", LANGGRAPH, "postgresql"),
    Peer("optuna", "benchmarks.peers.optuna:SQLite", ("optuna==5.0.0", "sqlalchemy==2.1.9")),
)
