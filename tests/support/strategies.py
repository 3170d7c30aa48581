"""Strategies of hypothesis: JSON values, unusual texts, and whole sessions."""

from __future__ import annotations

from datetime import UTC
from typing import Any

from hypothesis import strategies as st

from vibeforge_sessions import ErrorEntry, Session, SessionPhase

# every code point, including surrogates and NUL; but no pair of surrogates, because JSON cannot distinguish it from the
# character that it encodes (the contract suite checks that it is rejected)
texts = st.text(st.characters(), max_size=20).filter(
    lambda text: text == text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
)
plain_texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
task_ids = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12) | st.just("x" * 255)
session_ids = st.text("abcABC019._:~-", min_size=1, max_size=12) | st.just("x" * 64)
times = st.datetimes(timezones=st.just(UTC))
greatest = st.sampled_from([2**63, 2**64, 10**4299, 10**4300 - 1, -(10**4300) + 1])
numbers = st.integers() | greatest | st.floats(allow_nan=False, allow_infinity=False)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
json_objects = st.dictionaries(texts, json_values, max_size=2)
phases = st.sampled_from(SessionPhase)
entries = st.builds(ErrorEntry, timestamp=times, task_id=task_ids, error_message=plain_texts, phase=phases)
artifacts = st.none() | json_objects

sessions = st.builds(
    Session,
    session_id=session_ids,
    phase=phases,
    created_at=times,
    updated_at=times,
    current_question_index=st.integers(0, 2**63 - 1),
    answers=json_objects,
    intent_profile=artifacts,
    build_spec=artifacts,
    concept=artifacts,
    task_graph=artifacts,
    completed_task_ids=st.lists(task_ids, max_size=3),
    failed_task_ids=st.lists(task_ids, max_size=3),
    active_task_id=st.none() | task_ids,
    logs=st.lists(plain_texts, max_size=3),
    pending_clarification=artifacts,
    clarification_answer=json_values,
    error_history=st.lists(entries, max_size=3),
)
