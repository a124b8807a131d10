"""The API as a resource of twisted.web: Klein routes, `dispatch` answers.

Klein 24.8 imports the global reactor when it is imported (`klein._app`), which installs the default one. So
this module is imported after the reactor was chosen, that is not by `tap.py` at its top.

What Klein and Twisted would answer by themselves is kept from them: paths and hosts that are not UTF-8 (Klein
logs a stack trace for them, or lets twisted.web answer 500 in HTML), unknown paths and methods (HTML),
redirects for doubled slashes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from klein import Klein
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET, Request
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from zope.interface import implementer

from controller.api.catalog import all_routes
from controller.api.dispatch import Dispatcher, write_problem
from controller.api.ports import Ports
from controller.api.problems import ProblemError
from controller.api.routes import Route
from controller.api.stream import StreamLimits

SECURITY_HEADERS: Final = (
    (b"Server", b"defender-fleet"),
    (b"Strict-Transport-Security", b"max-age=31536000"),
    (b"X-Content-Type-Options", b"nosniff"),
    (b"X-Frame-Options", b"DENY"),
    (b"Referrer-Policy", b"no-referrer"),
    (b"Content-Security-Policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"Cross-Origin-Resource-Policy", b"same-origin"),
    (b"Cache-Control", b"no-store"),
)
"""Every answer of the API has them: it is for programs, and holds secrets that no cache may keep."""

PATHS: Final = (b"/api", b"/livez", b"/readyz", b"/metrics", b"/install")
"""What is the API's; every path that is none of these nor below one may be somebody else's."""

_LONGEST_METHOD: Final = 16


class Api:
    """The API.

    Args:
        ports: what it stands on.
        clock: the reactor.
        version: the program's, for the description.
        check_answers: hold every answer to its declaration; for tests.
        limits: of event streams and exports.
    """

    def __init__(
        self,
        ports: Ports,
        clock: IReactorTime,
        *,
        version: str,
        check_answers: bool = False,
        limits: StreamLimits | None = None,
    ) -> None:
        self.dispatcher = Dispatcher(
            ports, clock, check_answers=check_answers, limits=limits or StreamLimits()
        )
        self._klein = Klein()
        self._klein.url_map.merge_slashes = False
        for route in all_routes(version):
            self._add(route)
        self._klein.handle_errors(HTTPException)(_no_route)

    def _add(self, route: Route) -> None:
        serve = self._server(route)
        path = route.path.replace("{", "<").replace("}", ">")
        self._klein.route(path, methods=[route.method], endpoint=route.operation)(serve)

    def _server(self, route: Route) -> Callable[..., Deferred[bytes | None]]:
        def serve(request: IRequest, **variables: str) -> Deferred[bytes | None]:
            assert isinstance(request, Request)
            return self.dispatcher.serve(route, request, variables)

        serve.__name__ = route.operation
        return serve

    def stop(self) -> Deferred[None]:
        """Answer new requests with 503, end the streams; fires when what was begun is at its end."""
        return Deferred.fromCoroutine(self.dispatcher.stop())

    def resource(self, elsewhere: IResource | None = None) -> ApiResource:
        """The root of a site; `elsewhere` serves the paths that are not the API's."""
        return ApiResource(self._klein, elsewhere)


def _no_route(request: IRequest, failure: Failure) -> bytes:
    """What Klein's map says of a path or method that is not there, as a problem."""
    assert isinstance(request, Request)
    error = failure.value
    if isinstance(error, MethodNotAllowed):
        allowed = ", ".join(sorted({*(error.valid_methods or ()), "OPTIONS"}))
        request.setHeader("Allow", allowed)
        if request.method == b"OPTIONS":
            request.setResponseCode(204)
            return b""
        method = request.method.decode("ascii")[:_LONGEST_METHOD]
        return write_problem(
            request, ProblemError(405, "no-such-method", f"{method} is not for this path; {allowed} are")
        )
    return write_problem(
        request, ProblemError(404, "no-such-path", "there is nothing at this path; see /api/v1/openapi.json")
    )


@implementer(IResource)
class ApiResource(Resource):
    """Looks at a request before Klein does, and gives every answer the security headers."""

    isLeaf = True  # noqa: N815

    def __init__(self, klein: Klein, elsewhere: IResource | None) -> None:
        super().__init__()
        self._klein = klein.resource()
        self._elsewhere = elsewhere

    def render(self, request: Any) -> Any:
        """Answer, later as a rule."""
        path: bytes = request.path
        if self._elsewhere is not None and not any(
            path == prefix or path.startswith(prefix + b"/") for prefix in PATHS
        ):
            return self._hand_over(request)
        for name, value in SECURITY_HEADERS:
            request.setHeader(name, value)
        told = _unreadable(request)
        if told:
            return write_problem(request, ProblemError(400, "unreadable", told))
        return self._klein.render(request)

    def _hand_over(self, request: Any) -> Any:
        found = self._elsewhere
        while request.postpath and found is not None and not found.isLeaf:
            segment = request.postpath.pop(0)
            request.prepath.append(segment)
            found = found.getChildWithDefault(segment, request)
        assert found is not None
        request.render(found)
        return NOT_DONE_YET


def _unreadable(request: Any) -> str:
    """Why Klein could not read path or host of a request, "" if it can."""
    try:
        b"/".join(request.postpath).decode("utf-8")
    except UnicodeDecodeError:
        return "the path is not percent-encoded UTF-8"
    if len(request.requestHeaders.getRawHeaders(b"host", [])) > 1:
        return "there are two Host headers"
    try:
        # As werkzeug does it, with the port that Klein puts behind.
        name = request.getRequestHostname().decode("utf-8").lower()
        f"{name}:65535".encode("idna")
    except UnicodeError:
        return "the Host header is no host name"
    return ""
