"""OpenTelemetry spans of repository calls, with the spans of SQLAlchemy's statements as children.

A program enables both at its start:

    from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
    from vibeforge_sessions.integrations import opentelemetry

    SQLAlchemyInstrumentor().instrument(skip_dep_check=True)  # before engines are created, or with engine=…
    opentelemetry.instrument()

``skip_dep_check`` is necessary because the instrumentation (0.66b1) declares that it requires SQLAlchemy before 2.1,
and by default does nothing with a later version. The tests of this package run it with SQLAlchemy 2.1. On an
instrumented engine, statements are executed by SQLAlchemy's `Connection` and not as precompiled statements.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

try:
    from opentelemetry import trace
except ModuleNotFoundError as error:
    raise ImportError(
        "vibeforge_sessions.integrations.opentelemetry needs OpenTelemetry: pip install 'vibeforge-sessions[otel]'"
    ) from error

from vibeforge_sessions.repository import instrumentation
from vibeforge_sessions.repository.instrumentation import Call

__all__ = ["instrument", "uninstrument"]


def instrument(tracer_provider: trace.TracerProvider | None = None) -> None:
    """Create a span for each later call of a repository, in the whole process.

    The name of a span is that of the method, for example ``SessionRepository.append_error``. Its attributes
    ``vibeforge_sessions.session_id``, ``….version``, ``….attempts`` and ``….outcome`` are those of the log record of
    the call. If the call raised, the status is an error with the name of the error's class. The status does not contain
    the error's message, which may quote a driver's message.

    :param tracer_provider: the tracer provider; by default the global one of OpenTelemetry.
    """
    tracer = trace.get_tracer("vibeforge_sessions", tracer_provider=tracer_provider)

    @contextmanager
    def span_of(call: Call) -> Iterator[None]:
        with tracer.start_as_current_span(
            f"SessionRepository.{call.name}", record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield
            finally:
                for name in ("session_id", "version", "attempts", "outcome"):
                    value = getattr(call, name)
                    if value is not None:
                        span.set_attribute(f"vibeforge_sessions.{name}", value)
                if call.outcome != "ok":
                    span.set_status(trace.StatusCode.ERROR, call.outcome)

    instrumentation.use_spans(span_of)


def uninstrument() -> None:
    """Stop creating spans."""
    instrumentation.use_spans(None)
