"""The OpenAPI 3.1 document, made from the declarations of the routes and from nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from controller.api import shapes
from controller.api.examples import EXAMPLES
from controller.api.problems import PROBLEM_TYPE
from controller.api.routes import Route
from controller.api.schema import Field, ListOf, reference

_ABOUT: Final = """\
The API of a Defender Fleet controller.

Errors are `application/problem+json` (RFC 9457); `errors` names each wrong field by its JSON pointer. Lists
come in parts: give `next` back as `cursor`. What changes a policy needs `If-Match` with the policy's etag. A
POST with an `Idempotency-Key` may be sent again within ten minutes while the controller runs: it acts once
and gets the same answer. Tokens go in the `Authorization` header and nowhere else.
"""

_PROBLEMS: Final[dict[int, str]] = {
    400: "The request cannot be read.",
    401: "No sign-in, or one that has ended.",
    403: "This account may not do that.",
    404: "There is no such thing.",
    409: "What is there does not allow it.",
    412: "It was changed in the meantime; look again.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    422: "Fields of the body are wrong.",
    428: "If-Match is missing.",
    429: "Too often; come again after `Retry-After` seconds.",
    500: "A fault of the controller; `instance` stands in its log.",
    503: "The controller cannot do this now, and says why.",
}


def document(routes: Iterable[Route], version: str) -> dict[str, Any]:
    """The whole document. `version` is the program's."""
    found = list(routes)
    paths: dict[str, dict[str, Any]] = {}
    for route in found:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Defender Fleet",
            "version": version,
            "summary": "Access control for Docker Engines, fleet-wide.",
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": tag} for tag in dict.fromkeys(route.tag for route in found)],
        "paths": paths,
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": _schemas(found),
            "responses": {f"Problem{status}": _problem(status, about) for status, about in _PROBLEMS.items()},
        },
    }


def _schemas(routes: Sequence[Route]) -> dict[str, Any]:
    named: dict[str, Field] = {}

    def visit(declared: Field) -> None:
        if declared.name:
            if declared.name in named:
                if named[declared.name] is not declared:
                    raise ValueError(f"two shapes are called {declared.name}")
                return
            named[declared.name] = declared
        for part in declared.parts():
            visit(part)

    visit(shapes.PROBLEM)
    for route in routes:
        for declared in (route.answer, route.body, *route.variables.values(), *route.query.values()):
            if declared is not None:
                visit(declared)
    made = {}
    for name in sorted(named):
        made[name] = named[name].schema()
        if name in EXAMPLES:
            made[name]["examples"] = [EXAMPLES[name]]
    return made


def _operation(route: Route) -> dict[str, Any]:
    made: dict[str, Any] = {
        "operationId": route.operation,
        "summary": route.summary,
        "tags": [route.tag],
        "parameters": list(_parameters(route)),
        "responses": _responses(route),
        "security": [{"bearer": []}] if route.permission else [],
    }
    if route.permission:
        made["x-permission"] = route.permission
    if route.body is not None:
        content: dict[str, Any] = {"schema": reference(route.body)}
        if route.example is not None:
            content["example"] = route.example
        made["requestBody"] = {"required": True, "content": {"application/json": content}}
    return made


def _parameters(route: Route) -> Iterator[dict[str, Any]]:
    for name, declared in route.variables.items():
        yield {"name": name, "in": "path", "required": True, "schema": declared.schema()}
    for name, declared in route.query.items():
        made: dict[str, Any] = {"name": name, "in": "query", "schema": declared.schema()}
        if isinstance(declared, ListOf):
            made |= {"style": "form", "explode": True}
        yield made
    if route.conditional:
        about = "The etag of what is to be changed, or `*`."
        yield {"name": "If-Match", "in": "header", "schema": {"type": "string"}, "description": about}
        about = "`*` alone: only if there is none yet."
        yield {"name": "If-None-Match", "in": "header", "schema": {"const": "*"}, "description": about}
    if route.repeatable:
        about = "A text of your own: the same request with the same key acts once."
        yield {
            "name": "Idempotency-Key",
            "in": "header",
            "schema": {"type": "string", "minLength": 1, "maxLength": 128},
            "description": about,
        }
    if route.streams and route.operation == "stream_events":
        about = "The id of the last event that was seen; goes before `after`."
        yield {"name": "Last-Event-ID", "in": "header", "schema": {"type": "string"}, "description": about}


def _responses(route: Route) -> dict[str, Any]:
    good: dict[str, Any] = {"description": "Done." if route.writes else "Here it is."}
    if route.answer is not None:
        good["content"] = {"application/json": {"schema": reference(route.answer)}}
    elif route.status != 204:
        good["content"] = {
            media.split(";")[0]: {"schema": {"type": "object" if "json" in media else "string"}}
            for media in route.media
        }
    if route.answer is shapes.POLICY:
        good["headers"] = {"ETag": {"schema": {"type": "string"}}}
    made: dict[str, Any] = {str(status): good for status in (route.status, *route.also)}
    for status in possible_problems(route):
        made.setdefault(str(status), {"$ref": f"#/components/responses/Problem{status}"})
    return made


def possible_problems(route: Route) -> list[int]:
    """The statuses of the errors that a route may answer with."""
    found = {400, 429, 500, 503}
    if route.permission:
        found |= {401, 403}
    elif route.writes:
        found.add(401)
    if route.variables or route.writes:
        found.add(404)
    if route.body is not None:
        found |= {413, 415, 422}
    if route.writes:
        found.add(409)
    if route.conditional:
        found |= {412, 428}
    if route.repeatable or route.variables:
        found.add(422)
    return sorted(found)


def _problem(status: int, about: str) -> dict[str, Any]:
    made: dict[str, Any] = {
        "description": about,
        "content": {PROBLEM_TYPE: {"schema": reference(shapes.PROBLEM)}},
    }
    if status in (429, 503):
        made["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
    return made
