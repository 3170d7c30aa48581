"""Another name of `Executor`."""

from __future__ import annotations

from vibeforge_sessions.sql.transactions.executor import Executor

ConnectionExecutor = Executor
