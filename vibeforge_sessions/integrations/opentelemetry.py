"""OpenTelemetry: a span for each call of a repository, with SQLAlchemy's statements below it.

::

    from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
    from vibeforge_sessions import otel

    SQLAlchemyInstrumentor().instrument(skip_dep_check=True)  # before engines are made; or with engine=…
    otel.instrument()

``skip_dep_check``, since the instrumentation (0.66b1) says of itself that it wants a SQLAlchemy before 2.1, and does
nothing otherwise; our tests run it on 2.1. An engine that is instrumented is watched, so its statements go through
SQLAlchemy's `Connection`.
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
    """Make a span of each call from now on, in the whole process.

    It is called ``SessionRepository.append_error`` and the like, and has the attributes
    ``vibeforge_sessions.session_id``, ``….version``, ``….attempts`` and ``….outcome``, as the records of
    `vibeforge_sessions.repository.instrumentation` have them. Its status is an error where the call has raised, with
    the name of the error's class; no message, since it may quote a driver.

    :param tracer_provider: OpenTelemetry's global one by default.
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
                told = {
                    "session_id": call.session_id,
                    "version": call.version,
                    "attempts": call.attempts,
                    "outcome": call.outcome,
                }
                for name, value in told.items():
                    if value is not None:
                        span.set_attribute(f"vibeforge_sessions.{name}", value)
                if call.outcome != "ok":
                    span.set_status(trace.StatusCode.ERROR, call.outcome)

    instrumentation.use_spans(span_of)


def uninstrument() -> None:
    """Make no more spans."""
    instrumentation.use_spans(None)
