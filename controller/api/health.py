"""Routes for those who look after the controller: is it alive, is it ready, how is it."""

from __future__ import annotations

from typing import Final

from controller.api import shapes
from controller.api.metrics import CONTENT_TYPE, exposition
from controller.api.routes import Answer, Call, Route


async def live(call: Call) -> Answer:
    """Whoever gets this answer knows that the reactor turns."""
    return Answer({"alive": True})


async def ready(call: Call) -> Answer:
    """Every check; 503 if one does not hold."""
    checks = await call.ports.health.ready()
    fine = all(check.ok for check in checks)
    shown = [{"name": check.name, "ok": check.ok, "detail": check.detail} for check in checks]
    return Answer({"ready": fine, "checks": shown}, status=200 if fine else 503)


async def status(call: Call) -> Answer:
    """The fleet in a few numbers."""
    return Answer(await call.ports.health.status())


async def metrics(call: Call) -> Answer:
    """Metrics of the controller and of the API itself."""
    families = [*await call.ports.health.families(), *call.metrics.families()]
    return Answer(text=exposition(families))


ROUTES: Final = (
    Route("GET", "/livez", "live", "Whether the controller turns.", "", live, answer=shapes.LIVENESS),
    Route(
        "GET",
        "/readyz",
        "ready",
        "Whether the controller can do its work, and why not.",
        "",
        ready,
        also=(503,),
        answer=shapes.READINESS,
    ),
    Route(
        "GET",
        "/metrics",
        "metrics",
        "Metrics for Prometheus.",
        "metrics.read",
        metrics,
        media=(CONTENT_TYPE,),
    ),
    Route(
        "GET",
        "/api/v1/status",
        "show_status",
        "The fleet in a few numbers.",
        "status.read",
        status,
        answer=shapes.FLEET_STATUS,
    ),
)
