"""Figures about a server, as Prometheus reads them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_SECONDS = (0.05, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800)
BATCH_SIZES = (1, 2, 4, 8, 16, 32)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """What one server counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, processor time and open files
        options: dict[str, Any] = {"namespace": "whisper_at", "registry": self.registry}
        self.requests = Counter("requests", "Requests answered", ["route", "status"], **options)
        self.request_seconds = Histogram(
            "request_seconds", "From a request to the end of its answer", ["route"], buckets=REQUEST_SECONDS, **options
        )
        self.errors = Counter("errors", "Failures of the server, by the kind of exception", ["kind"], **options)
        self.cancelled = Counter("cancelled", "Recordings whose client went before they were finished", **options)
        self.audio_seconds = Counter("audio_seconds", "Seconds of sound that were finished", **options)
        self.work_seconds = Counter("work_seconds", "Seconds that models were at work", **options)
        self.batch_windows = Histogram(
            "batch_windows", "Windows that were transcribed at once", buckets=BATCH_SIZES, **options
        )
        self.recordings = Gauge("recordings", "Recordings that wait, or are being transcribed", ["state"], **options)

    def watch_recordings(self, state: str, count: Callable[[], float]) -> None:
        """Let a gauge show a number whenever it is read."""
        self.recordings.labels(state).set_function(count)

    def text(self) -> bytes:
        """Return all figures in Prometheus's format."""
        return generate_latest(self.registry)


class MetricsMiddleware:
    """Counts requests by route and status. Paths that are not there are one route, so that no client makes new ones."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count it."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        status, begun = 500, time.perf_counter()

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        except Exception as error:
            self.metrics.errors.labels(type(error).__name__).inc()
            raise
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.request_seconds.labels(route).observe(time.perf_counter() - begun)
