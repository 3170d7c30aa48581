"""A prune in a process of its own: ``python -m tests.support.prune_worker URL BATCH_SIZE ARCHIVE`` (``-`` for none).

It begins when it is given a line, tells after each batch how many it has deleted, and at the end what became of all.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from datetime import timedelta

from vibeforge_sessions import SessionFilter, open_repository
from vibeforge_sessions.retention import PruneReport, prune


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def batch(report: PruneReport) -> None:
    say(f"{report.total}")


if __name__ == "__main__":
    url, batch_size, archive = sys.argv[1:]
    with open_repository(url) as repository:
        say("ready")
        sys.stdin.readline()
        report = prune(
            repository,
            SessionFilter(phases=["COMPLETE"]),
            older_than=timedelta(days=30),
            batch_size=int(batch_size),
            archive=None if archive == "-" else archive,
            pause=0,
            on_batch=batch,
        )
    say(json.dumps(asdict(report), default=str))
