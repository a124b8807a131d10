"""All routes of the API."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from controller.api import admission, audit, defenders, health, installer, people, policies
from controller.api.openapi import document
from controller.api.routes import Answer, Call, Route
from controller.api.schema import Free


def _openapi_route(routes: Iterable[Route], version: str) -> Route:
    made = document(routes, version)

    async def openapi(call: Call) -> Answer:
        return Answer(made)

    return Route(
        "GET",
        "/api/v1/openapi.json",
        "openapi",
        "This description of the API.",
        "",
        openapi,
        answer=Free("An OpenAPI 3.1 document."),
    )


ROUTES: Final = (
    *people.ROUTES,
    *defenders.ROUTES,
    *admission.ROUTES,
    *policies.ROUTES,
    *audit.ROUTES,
    *health.ROUTES,
    *installer.ROUTES,
)
"""Every route but the one of the description itself."""


def all_routes(version: str) -> tuple[Route, ...]:
    """Every route; the description describes itself too."""
    itself = _openapi_route((), version)
    return (*ROUTES, _openapi_route((*ROUTES, itself), version))
