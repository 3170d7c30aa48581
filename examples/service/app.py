"""Example service for sessions: ``make serve``, then http://127.0.0.1:8000/docs.

Its database is ``VIBEFORGE_SESSIONS_DATABASE_URL``, by default a SQLite file in the current folder. Several processes
can run on one database, and each of them may be killed: all acknowledged changes are stored, and the other processes
continue its work.

A client that changes a session sends the version that it has read. If the stored version differs, the response is 409
with both versions, and the client reads the session again. Therefore no answer is lost, and a double click counts once.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel

from examples.service.forge import QUESTIONS, ForgeSession
from examples.service.worker import working
from vibeforge_sessions import (
    AsyncSessionRepository,
    SessionFilter,
    SessionNotFoundError,
    SessionPhase,
    StaleSessionError,
)
from vibeforge_sessions.integrations.fastapi import get_repository, install_error_handlers, lifespan

DATABASE = os.environ.get("VIBEFORGE_SESSIONS_DATABASE_URL") or "sqlite:///forge_service.db"
ENDED = {SessionPhase.COMPLETE, SessionPhase.FAILED}

Repository = Annotated[AsyncSessionRepository[ForgeSession], Depends(get_repository)]


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with (
        lifespan(DATABASE, migrate=True, session_type=ForgeSession)(app),
        working(app.state.session_repository),
    ):
        yield


app = FastAPI(title="VibeForge", lifespan=_lifespan)
install_error_handlers(app)


class Change(BaseModel):
    """Version of the session that a change is based on."""

    version: int


class Answer(Change):
    """Answer to a question."""

    question_id: str
    answer: str


class Decision(Change):
    """Approval or rejection of the plan."""

    approved: bool


class Clarification(Change):
    """Answer to the question of a task."""

    answer: str


async def _read(
    repository: Repository, session_id: str, *phases: SessionPhase, change: Change | None = None
) -> ForgeSession:
    """Return a session, if it is in one of the phases and has the version that the change is based on."""
    session = await repository.get_session(session_id, recent=0)
    if session is None:
        raise SessionNotFoundError(session_id)
    if change is not None and change.version != session.version:
        raise StaleSessionError(session_id, change.version, session.version)
    if phases and session.phase not in phases:
        raise HTTPException(409, f"the session is in the phase {session.phase.value}")
    return session


def _brief(session: ForgeSession) -> dict[str, Any]:
    return {"session_id": session.session_id, "phase": session.phase, "version": session.version}


@app.post("/sessions", status_code=201)
async def start(repository: Repository) -> dict[str, Any]:
    """Start a session."""
    return _brief(await repository.create_session())


@app.get("/sessions")
async def list_sessions(
    repository: Repository, phase: str | None = None, cursor: str | None = None, limit: int = 50
) -> dict[str, Any]:
    """List sessions, newest first."""
    asked = SessionFilter(phases=[phase]) if phase else None
    page = await repository.find_sessions(asked, limit=limit, cursor=cursor)
    items = [
        {"session_id": item.session_id, "phase": item.phase, "errors": item.error_count, "updated_at": item.updated_at}
        for item in page.items
    ]
    return {"items": items, "next_cursor": page.next_cursor}


@app.get("/sessions/{session_id}/question")
async def next_question(session_id: str, repository: Repository) -> dict[str, Any]:
    """Return the next question, or None after the last one."""
    session = await _read(repository, session_id)
    index = session.current_question_index
    return {**_brief(session), "question": QUESTIONS[index] if index < len(QUESTIONS) else None}


@app.post("/sessions/{session_id}/answers")
async def answer(session_id: str, given: Answer, repository: Repository) -> dict[str, Any]:
    """Answer the current question."""
    session = await _read(repository, session_id, SessionPhase.QUESTIONNAIRE, change=given)
    question = QUESTIONS[session.current_question_index]
    if given.question_id != question["id"] or given.answer not in question["options"]:
        raise HTTPException(422, f"the question is {question['id']}, and its options are {question['options']}")
    session.answer(given.question_id, given.answer)
    await repository.update_session(session)
    return _brief(session)


@app.post("/sessions/{session_id}/plan")
async def decide(session_id: str, decision: Decision, repository: Repository) -> dict[str, Any]:
    """Approve the plan, or request another one."""
    session = await _read(repository, session_id, SessionPhase.PLAN_REVIEW, change=decision)
    if decision.approved:
        session.update_phase(SessionPhase.EXECUTION)
    else:
        session.add_log("the plan was sent back")
        session.plan()
    await repository.update_session(session)
    return _brief(session)


@app.get("/sessions/{session_id}/progress")
async def progress(session_id: str, repository: Repository) -> dict[str, Any]:
    """Return the progress of the session, with its last errors and log lines."""
    session = await repository.get_session(session_id, recent=5)
    if session is None:
        raise SessionNotFoundError(session_id)
    return {
        **_brief(session),
        "answers": session.answers,
        "completed": session.completed_task_ids,
        "active": session.active_task_id,
        "is_aborted": session.is_aborted,
        "errors": [dict(entry) for entry in session.error_history],
        "error_count": session.omitted_errors + len(session.error_history),
        "logs": session.logs,
    }


@app.get("/sessions/{session_id}/clarification")
async def clarification(session_id: str, repository: Repository) -> dict[str, Any]:
    """Return the pending question of a task, or None."""
    session = await _read(repository, session_id)
    return {**_brief(session), "clarification": session.pending_clarification}


@app.post("/sessions/{session_id}/clarification")
async def clarify(session_id: str, given: Clarification, repository: Repository) -> dict[str, Any]:
    """Answer the question of a task; a worker then continues the session."""
    session = await _read(repository, session_id, SessionPhase.CLARIFICATION, change=given)
    session.clarification_answer = given.answer
    session.pending_clarification = None
    session.update_phase(SessionPhase.EXECUTION)
    await repository.update_session(session)
    return _brief(session)


@app.get("/sessions/{session_id}/result")
async def result(session_id: str, repository: Repository) -> dict[str, Any]:
    """Return the artifacts of a complete session."""
    session = await _read(repository, session_id, SessionPhase.COMPLETE)
    return {**_brief(session), "build_spec": session.build_spec, "concept": session.concept, "plan": session.task_graph}


@app.post("/sessions/{session_id}/abort")
async def abort(session_id: str, repository: Repository) -> dict[str, Any]:
    """Abort a session, even if a worker has claimed it; a second abort has no effect."""

    def end(session: ForgeSession) -> None:
        if session.phase not in ENDED:
            session.is_aborted = True
            session.release()
            session.update_phase(SessionPhase.FAILED)

    session = await repository.modify_session(session_id, end)
    return {**_brief(session), "is_aborted": session.is_aborted}
