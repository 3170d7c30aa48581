"""Speed and memory of moving sessions: ``python -m tests.support.archive_scale --sessions 100000``.

Each step runs in its own process, whose peak memory is measured (on Linux). The output has one line per step: its name,
sessions per second, CPU time and peak memory. The script fails if a step needs more than 200 MB, or if the exported
archives differ.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from tests.support.repositories import upgrade
from vibeforge_sessions import ErrorEntry, Session, SessionRepository, open_repository
from vibeforge_sessions.archive import ArchiveWriter, Report, copy_sessions, export_sessions, import_sessions
from vibeforge_sessions.repository.serialization import Record
from vibeforge_sessions.sql.engine import parse_url

BEGAN: Final = datetime(2026, 1, 1, tzinfo=UTC)
MESSAGE: Final = "src/App.tsx(12,7): error TS2304: Cannot find name 'useState'. " * 3


class Errors:
    """An iterable of this many entries, which can be iterated more than once."""

    def __init__(self, count: int, message: int = len(MESSAGE)) -> None:
        self.count = count
        self.message = (MESSAGE * (message // len(MESSAGE) + 1))[:message]

    def __iter__(self) -> Iterator[ErrorEntry]:
        for position in range(1, self.count + 1):
            time = BEGAN + timedelta(milliseconds=position)
            yield ErrorEntry(time, f"task-{position % 50}", f"{position}: {self.message}", "EXECUTION", position)


def fill(repository: SessionRepository, sessions: int, errors: Errors) -> Report:
    """Store this many sessions of usual size, and one session with these errors."""
    sample = Session(
        session_id="sample",
        answers={f"question {number}": f"an answer of usual length, {number}" for number in range(12)},
        build_spec={"stack": "vite-react", "features": ["auth", "payments"]},
        concept={"title": "An app", "text": "x" * 1_500},
        task_graph={"tasks": [{"id": f"t{number}", "needs": [f"t{number - 1}"]} for number in range(20)]},
    )
    repository.create_session(sample)
    record = repository.get_record("sample")
    assert record is not None
    repository.delete_session("sample")
    few = list(Errors(3))
    for number in range(sessions):
        repository.restore_record(_as(record, f"s{number:08}", number, len(few)), few, ["[2026] started"] * 5)
    repository.restore_record(_as(record, "long", sessions, errors.count, logs=0), errors)
    return Report(created=sessions + 1, errors=3 * sessions + errors.count)


def _as(record: Record, session_id: str, number: int, errors: int, logs: int = 5) -> Record:
    created = BEGAN + timedelta(seconds=number)
    return dataclasses.replace(
        record,
        session_id=session_id,
        created_at=created,
        updated_at=created + timedelta(hours=1),
        version=7,
        error_count=errors,
        log_count=logs,
    )


def archive(repository: SessionRepository, path: str) -> Report:
    """Archive all sessions in batches of a hundred, as a deletion with an archive does."""
    report = Report()
    with ArchiveWriter(path) as writer:
        for number, session_id in enumerate(repository.list_sessions(), 1):
            record = repository.get_record(session_id)
            assert record is not None
            writer.add(repository, record)
            if number % 100 == 0:
                report.exported += len(writer.commit())
        report.exported += len(writer.commit())
    return report


STEPS: dict[str, Callable[[argparse.Namespace], Report]] = {
    "fill": lambda options: fill(
        open_repository(options.source), options.sessions, Errors(options.errors, options.message)
    ),
    "export": lambda options: export_sessions(open_repository(options.source), options.file, overwrite=True),
    "export, compressed": lambda options: export_sessions(open_repository(options.source), f"{options.file}.gz"),
    "import": lambda options: import_sessions(open_repository(options.target), options.file),
    "import again": lambda options: import_sessions(open_repository(options.target), f"{options.file}.gz"),
    "export again": lambda options: export_sessions(open_repository(options.target), f"{options.file}.2"),
    "copy": lambda options: copy_sessions(open_repository(options.source), open_repository(options.copy)),
    "copy again": lambda options: copy_sessions(open_repository(options.source), open_repository(options.copy)),
    "archive": lambda options: archive(open_repository(options.source), f"{options.file}.archive.gz"),
}


def step(options: argparse.Namespace) -> dict[str, Any]:
    """Run one step in this process."""
    began, used = time.perf_counter(), time.process_time()
    report = STEPS[options.step](options)
    seconds, processor = time.perf_counter() - began, time.process_time() - used
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    moved = report.exported + report.created + report.replaced + report.unchanged
    return {
        "sessions": moved,
        "failed": report.failed,
        "seconds": seconds,
        "processor": processor,
        "peak": peak // 1024,
    }


def run(options: argparse.Namespace, folder: Path) -> bool:
    """Run each step in its own process; return whether all steps succeeded."""
    files = {"source": f"sqlite:///{folder}/source.db", "target": f"sqlite:///{folder}/target.db"}
    files |= {"copy": f"sqlite:///{folder}/copy.db", "file": f"{folder}/archive.jsonl"}
    files |= {name: value for name in files if (value := getattr(options, name))}
    for name in ("source", "target", "copy"):
        upgrade(parse_url(files[name]))
    arguments = [f"--{name}={value}" for name, value in files.items()]
    arguments += [f"--sessions={options.sessions}", f"--errors={options.errors}", f"--message={options.message}"]
    succeeded = True
    for name in ["fill", *options.steps]:
        command = [sys.executable, "-m", "tests.support.archive_scale", *arguments, "--step", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.stdout.write(f"{name}: {done.stderr}\n")
            return False
        figures = json.loads(done.stdout)
        rate = figures["sessions"] / figures["seconds"]
        sys.stdout.write(
            f"{name:20} {figures['sessions']:9,} sessions {figures['seconds']:8.1f} s {rate:8,.0f}/s "
            f"{figures['processor']:8.1f} s CPU {figures['peak']:5} MB\n"
        )
        sys.stdout.flush()
        succeeded = succeeded and not figures["failed"] and (name == "fill" or figures["peak"] <= options.limit)
    if "export again" not in options.steps:
        return succeeded
    same = subprocess.run(["cmp", files["file"], f"{files['file']}.2"], check=False).returncode == 0
    sys.stdout.write(f"identical archives: {same}\n")
    return succeeded and same


def main() -> None:
    """Parse the options and run the steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=100_000)
    parser.add_argument("--errors", type=int, default=1_000_000, help="entries of one additional session")
    parser.add_argument("--message", type=int, default=len(MESSAGE), help="length of their messages")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=[name for name in STEPS if name != "fill"])
    parser.add_argument("--limit", type=int, default=200, help="maximum memory of a step in MB")
    for name in ("source", "target", "copy"):
        parser.add_argument(f"--{name}", help="URL of an empty database; a SQLite file by default")
    parser.add_argument("--file", help="path of the archive")
    parser.add_argument("--folder", help="folder of the files, instead of a temporary folder")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        sys.stdout.write(json.dumps(step(options)))
        return
    with tempfile.TemporaryDirectory(prefix="vfs-scale-", dir=options.folder) as folder:
        sys.exit(not run(options, Path(folder)))


if __name__ == "__main__":
    main()
