"""A prune in its own process: ``python -m tests.support.prune_worker URL BATCH_SIZE ARCHIVE`` (``-`` for no archive).

The process begins after it has read a line. It prints the number of deleted sessions after each batch, and the report
at the end.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from datetime import timedelta

from vibeforge_sessions import SessionFilter, open_repository
from vibeforge_sessions.retention import PruneReport, prune


def print_line(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def batch(report: PruneReport) -> None:
    print_line(f"{report.total}")


if __name__ == "__main__":
    url, batch_size, archive = sys.argv[1:]
    with open_repository(url) as repository:
        print_line("ready")
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
    print_line(json.dumps(asdict(report), default=str))
