"""Peers: other session stores, each in its own environment. This module imports the standard library only."""

from __future__ import annotations

from typing import NamedTuple


class Peer(NamedTuple):
    """Peer, and the requirements of its environment.

    :param contender: ``MODULE:CLASS``, for `benchmarks.worker`.
    :param requirements: pinned packages that pip installs: the peer, and packages that it needs but does not require.
    :param place: ``folder``, or the kind of server on which it gets an empty database.
    """

    name: str
    contender: str
    requirements: tuple[str, ...]
    place: str = "folder"


# not google-adk[db], which installs Spanner
ADK = ("google-adk==2.13.0", "sqlalchemy[asyncio]==2.1.9")
LANGGRAPH = ("langgraph-checkpoint-sqlite==3.1.2", "langgraph-checkpoint-postgres==3.2.0", "psycopg[binary]==3.3.9")
PEERS: tuple[Peer, ...] = (
    Peer("google-adk", "benchmarks.peers.adk:ADK", ADK),
    Peer("google-adk PostgreSQL", "benchmarks.peers.adk:ADKPostgreSQL", (*ADK, "asyncpg==0.32.0"), "postgresql"),
    Peer("openai-agents SQLite", "benchmarks.peers.openai_agents:SQLite", ("openai-agents[sqlalchemy]==0.24.0",)),
    Peer(
        "openai-agents SQLAlchemy",
        "benchmarks.peers.openai_agents:SQLAlchemy",
        ("openai-agents[sqlalchemy]==0.24.0", "sqlalchemy==2.1.9", "aiosqlite==0.22.1"),
    ),
    Peer("langgraph SQLite", "benchmarks.peers.langgraph:SQLite", LANGGRAPH),
    Peer("langgraph PostgreSQL", "benchmarks.peers.langgraph:PostgreSQL", LANGGRAPH, "postgresql"),
    Peer("agno", "benchmarks.peers.agno:Agno", ("agno==3.1.10", "sqlalchemy[asyncio]==2.1.9")),
    Peer("optuna", "benchmarks.peers.optuna:SQLite", ("optuna==5.0.0", "sqlalchemy==2.1.9")),
)
