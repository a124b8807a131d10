"""Stock operations of the fake Engine: those of Engine 20.10.24 that tests and vectors meet.

Method and path are matched as gorilla/mux does there: decoded once, in order, anchored, an unclean path
answered 301 before anything else, then the version check, then the operation.
"""

from __future__ import annotations

import base64
import hashlib
import json
import posixpath
import re
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote_plus

from tests.fakes.engine_exchange import API_VERSION, MIDDLEWARE, Exchange, Tunnel
from tests.fakes.engine_wire import GoneError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fakes.engine import FakeEngine

    Operation = Callable[["Call"], None]

RAW_STREAM = "application/vnd.docker.raw-stream"
JSON = "application/json"
TAR = "application/x-tar"
CONTAINER_ID = "c0ffee" * 10 + "c0ff"
EXEC_ID = "e5ec" * 16
NO_STORE = (("Cache-Control", "no-cache, no-store, must-revalidate"), ("Pragma", "no-cache"))


class AnsweredError(Exception):
    """The operation has answered already; raised to leave it."""


class Call:
    """One matched request: path variables, first values of the query, and the engine's state."""

    def __init__(self, engine: FakeEngine, exchange: Exchange, names: dict[str, str], version: str) -> None:
        self.engine = engine
        self.exchange = exchange
        self.request = exchange.request
        self.names = names
        self.version = version
        self.query: dict[str, str] = {}

    @property
    def plain_errors(self) -> bool:
        """API versions below 1.24 get errors as text."""
        return compare_versions(self.version, "1.24") < 0

    def fail(self, status: int, message: str) -> AnsweredError:
        """Answer with the Engine's error shape; the caller raises what is returned."""
        self.exchange.error(status, message, plain=self.plain_errors)
        return AnsweredError(message)

    def parse_query(self) -> None:
        """Parse as ``ParseForm`` of Go 1.19 does, first value wins; 400 for what it refuses."""
        for pair in self.request.query.split("&"):
            if ";" in pair:
                raise self.fail(400, "invalid semicolon separator in query")
            if (bad := re.search(r"%(?![0-9A-Fa-f]{2}).{0,2}", pair)) is not None:
                raise self.fail(400, f'invalid URL escape "{bad[0]}"')
            key, _, value = pair.partition("=")
            self.query.setdefault(unquote_plus(key), unquote_plus(value))

    def truth(self, key: str) -> bool:
        """``BoolValue``: false only for "", 0, no, false, none."""
        return self.query.get(key, "").strip().lower() not in ("", "0", "no", "false", "none")

    def json_body(self, *, check_type: bool = True) -> dict[str, object]:
        """Read a JSON object from the body with the Engine's complaints about type and text."""
        kind = self.request.get("content-type") or ""
        is_json = kind.partition(";")[0].strip().lower() == JSON
        if check_type and (kind or self.request.length) and not is_json:
            raise self.fail(400, f"Content-Type specified ({kind}) must be 'application/json'")
        text = bytes(self.exchange.read_body().body).decode("utf-8", "replace").lstrip()
        if not text:
            raise self.fail(400, "got EOF while reading request body")
        try:
            value, _ = json.JSONDecoder().raw_decode(text)
        except ValueError:
            raise self.fail(400, f"invalid character '{text[0]}' looking for beginning of value") from None
        return value if isinstance(value, dict) else {}

    def container(self) -> str:
        """Return the named container; 404 for the names in ``engine.missing``."""
        name = self.names["name"]
        if name in self.engine.missing:
            raise self.fail(404, f"No such container: {name}")
        return name

    def send_json(self, value: object, status: int = 200) -> None:
        """Answer with JSON; chunked from 2 KiB on, as net/http does with an unflushed handler."""
        body = json.dumps(value, separators=(",", ":")).encode() + b"\n"
        if len(body) > 2048:
            self.exchange.start_chunked(status, content_type=JSON)
            self.exchange.chunk(body)
            self.exchange.end_chunks()
        else:
            self.exchange.answer(status, body, content_type=JSON)


def compare_versions(one: str, two: str) -> int:
    """Compare API versions as the Engine does: numerically by part, missing or odd parts are 0."""
    left, right = one.split("."), two.split(".")
    for index in range(max(len(left), len(right))):
        a = left[index] if index < len(left) else ""
        b = right[index] if index < len(right) else ""
        x, y = (int(a) if a.isdecimal() else 0), (int(b) if b.isdecimal() else 0)
        if x != y:
            return 1 if x > y else -1
    return 0


def clean_path(path: str) -> str:
    """gorilla/mux's ``cleanPath``: ``path.Clean`` with a leading slash, keeping a trailing one."""
    if not path:
        return "/"
    cleaned = posixpath.normpath(path if path.startswith("/") else "/" + path)
    cleaned = "/" + cleaned.lstrip("/")
    return cleaned + "/" if path.endswith("/") and cleaned != "/" else cleaned


def serve(engine: FakeEngine, exchange: Exchange) -> None:
    """Answer one request as the stock Engine does."""
    request = exchange.request
    expect = request.get("expect")
    if expect is not None and expect.lower() != "100-continue":
        exchange.keep = False
        exchange.answer(417, b"", headers=())
        return
    if request.target == "*" and request.method == "OPTIONS":
        exchange.answer(200, b"", headers=())
        return
    if (cleaned := clean_path(request.path)) != request.path:
        location = quote(cleaned.encode("utf-8", "surrogateescape"), safe="/$&+,:;=@!'()*~")
        if (origin := re.match(r"([A-Za-z][A-Za-z0-9+.\-]*:)(//[^/?]*)?", request.target)) is not None:
            location = origin[0] + location
        location += f"?{request.query}" if request.query else ""
        exchange.answer(301, b"", headers=[("Location", location)])
        return
    method, path = request.method, request.path
    for methods, pattern, operation in ROUTES:
        if method in methods and (match := pattern.fullmatch(path)) is not None:
            names = {key: value or "" for key, value in match.groupdict().items()}
            version = names.pop("version", "") or API_VERSION
            _call(Call(engine, exchange, names, version), operation)
            return
    exchange.error(404, "page not found", headers=())


def _call(call: Call, operation: Operation) -> None:
    plain = call.plain_errors
    if compare_versions(call.version, API_VERSION) > 0:
        message = f"client version {call.version} is too new. Maximum supported API version is {API_VERSION}"
        call.exchange.error(400, message)
        return
    if compare_versions(call.version, "1.12") < 0:
        message = f"client version {call.version} is too old. Minimum supported API version is 1.12, "
        call.exchange.error(400, message + "please upgrade your client to a newer version", plain=plain)
        return
    try:
        operation(call)
    except AnsweredError:
        return


def _ping(call: Call) -> None:
    extra = (("Builder-Version", call.engine.builder_version),) if call.engine.builder_version else ()
    headers = (*MIDDLEWARE, *NO_STORE, *extra)
    if call.request.method == "HEAD":
        call.exchange.answer(200, b"", headers, "text/plain; charset=utf-8")
    else:
        call.exchange.answer(200, b"OK", headers, "text/plain; charset=utf-8")


def _options(call: Call) -> None:
    call.exchange.answer(200)


def _debug(call: Call) -> None:
    call.exchange.answer(200, b"{}\n", headers=(), content_type="application/json; charset=utf-8")


def _version(call: Call) -> None:
    call.send_json(
        {"Version": "20.10.24+dfsg1", "ApiVersion": API_VERSION, "MinAPIVersion": "1.12", "Os": "linux"}
    )


def _info(call: Call) -> None:
    call.send_json({"ID": "FAKE", "Containers": 1, "ServerVersion": "20.10.24+dfsg1", "OSType": "linux"})


def _listing(call: Call) -> None:
    call.parse_query()
    call.send_json(call.engine.listing)


def _inspect(call: Call) -> None:
    call.parse_query()
    name = call.container()
    call.send_json(
        {"Id": CONTAINER_ID, "Name": f"/{name}", "State": {"Running": True}, "Config": {"Image": "img"}}
    )


def _create(call: Call) -> None:
    call.parse_query()
    call.engine.attach_tty = bool(call.json_body().get("Tty"))
    call.send_json({"Id": CONTAINER_ID, "Warnings": []}, 201)


def _done(call: Call) -> None:
    call.parse_query()
    call.container()
    call.exchange.read_body()
    call.exchange.answer(204)


def _wait(call: Call) -> None:
    call.parse_query()
    call.container()
    call.exchange.read_body()
    call.exchange.start_chunked(content_type=JSON)
    if (gate := call.engine.exit_gate) is not None:
        call.exchange.wait(gate)
    call.exchange.chunk(json.dumps({"StatusCode": call.engine.exit_code}).encode() + b"\n")
    call.exchange.end_chunks()


def _logs(call: Call) -> None:
    call.parse_query()
    call.container()
    if not (call.truth("stdout") or call.truth("stderr")):
        raise call.fail(400, "Bad parameters: you must choose at least one stream")
    call.exchange.start_chunked()
    for line in call.engine.log_lines:
        call.exchange.chunk(b"\x01\0\0\0" + len(line).to_bytes(4, "big") + line)
    if call.truth("follow") and (gate := call.engine.exit_gate) is not None:
        call.exchange.wait(gate)
    call.exchange.end_chunks()


def _events(call: Call) -> None:
    call.parse_query()
    if call.query.get("until"):
        call.exchange.start_chunked(content_type=JSON)
    else:
        call.engine.follow_events(call.exchange, lambda: call.exchange.start_chunked(content_type=JSON))
    call.exchange.end_chunks()


def _stats(call: Call) -> None:
    call.parse_query()
    call.container()

    def begin() -> None:
        call.exchange.start_chunked(content_type=JSON)
        call.exchange.chunk(b'{"read":"2026-11-22T00:00:00Z","pids_stats":{"current":1}}\n')

    if "stream" not in call.query or call.truth("stream"):
        call.engine.follow_events(call.exchange, begin)
    else:
        begin()
    call.exchange.end_chunks()


def _exec_create(call: Call) -> None:
    call.parse_query()
    call.container()
    config = call.json_body()
    call.send_json({"Id": call.engine.add_exec(config)}, 201)


def _exec_start(call: Call) -> None:
    call.parse_query()
    options = call.json_body(check_type=compare_versions(call.version, "1.21") > 0)
    config = call.engine.execs.get(call.names["name"])
    if config is None and re.fullmatch(r"[0-9a-f]{64}", call.names["name"]) is None:
        raise call.fail(404, f"No such exec instance: {call.names['name']}")
    if options.get("Detach"):
        call.exchange.answer(200)
        return
    upgrade = call.request.get("upgrade") is not None
    line = "101 UPGRADED" if upgrade else "200 OK"
    switch = "Connection: Upgrade\r\nUpgrade: tcp\r\n" if upgrade else ""
    copied = "".join(f"{name}: {value}\r\n" for name, value in MIDDLEWARE)
    head = f"HTTP/1.1 {line}\r\nContent-Type: {RAW_STREAM}\r\n{switch}{copied}\r\n"
    tunnel = call.exchange.hijack(head.encode(), tty=bool(options.get("Tty")))
    if config is not None and config.get("AttachStdin") is False:
        tunnel.write(b"hi\n")
    else:
        call.engine.program(tunnel)
    tunnel.half_close()


def _attach(call: Call) -> None:
    call.parse_query()
    call.exchange.read_body()
    name = call.names["name"]
    upgrade = call.request.get("upgrade") is not None
    if name in call.engine.missing:
        body = f"No such container: {name}\r\n"
        call.exchange.hijack(f"HTTP/1.1 404 Not Found\r\nContent-Type: {RAW_STREAM}\r\n\r\n{body}".encode())
        return
    line = "101 UPGRADED" if upgrade else "200 OK"
    switch = "Connection: Upgrade\r\nUpgrade: tcp\r\n" if upgrade else ""
    head = f"HTTP/1.1 {line}\r\nContent-Type: {RAW_STREAM}\r\n{switch}\r\n"
    tunnel = call.exchange.hijack(head.encode(), tty=call.engine.attach_tty)
    if call.truth("stream"):
        call.engine.program(tunnel)
    tunnel.half_close()


def _attach_websocket(call: Call) -> None:
    call.parse_query()
    call.container()
    get = call.request.get
    if (get("upgrade") or "").lower() != "websocket" or "upgrade" not in (get("connection") or "").lower():
        call.exchange.hijack(b"HTTP/1.1 400 Bad Request\r\n\r\nnot websocket protocol")
        return
    if get("sec-websocket-version") != "13":
        call.exchange.hijack(b"HTTP/1.1 400 Bad Request\r\n\r\nmissing or bad WebSocket Version")
        return
    secret = (get("sec-websocket-key") or "") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(secret.encode()).digest()).decode()
    head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    tunnel = call.exchange.hijack(f"{head}Sec-WebSocket-Accept: {accept}\r\n\r\n".encode())
    echo(tunnel)  # frames come back as they came, masked: enough to see that bytes pass


def _upgrade_h2c(call: Call) -> None:
    status = 500 if call.request.path.endswith("/grpc") else 400
    proto = call.request.get("upgrade")
    if not proto:
        raise call.fail(status, "no upgrade proto in request")
    if proto != "h2c":
        raise call.fail(status, f"protocol {proto} not supported")
    head = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    call.engine.program(call.exchange.hijack(head))


def _archive_get(call: Call) -> None:
    call.parse_query()
    call.container()
    stat = base64.b64encode(
        b'{"name":"f","size":3,"mode":420,"mtime":"2026-11-22T00:00:00Z","linkTarget":""}'
    )
    headers = (*MIDDLEWARE, ("X-Docker-Container-Path-Stat", stat.decode()))
    if call.request.method == "HEAD":
        call.exchange.answer(200, b"", headers)
        return
    call.exchange.start_chunked(headers=headers, content_type=TAR)
    call.exchange.chunk(call.engine.archive)
    call.exchange.end_chunks()


def _archive_put(call: Call) -> None:
    call.parse_query()
    call.container()
    call.exchange.read_body()
    call.exchange.answer(200)


def _pull(call: Call) -> None:
    call.parse_query()
    call.exchange.read_body()
    call.exchange.start_chunked(content_type=JSON)
    for line in ("Pulling from library/img", "Downloading", "Status: Downloaded newer image for img:latest"):
        call.exchange.chunk(json.dumps({"status": line}).encode() + b"\r\n")
    call.exchange.end_chunks()


def _load(call: Call) -> None:
    call.exchange.read_body()
    call.exchange.start_chunked(content_type=JSON)
    call.exchange.chunk(b'{"stream":"Loaded image: img:latest\\n"}\r\n')
    call.exchange.end_chunks()


def _build(call: Call) -> None:
    call.exchange.read_body()
    call.exchange.start_chunked(content_type=JSON)
    call.exchange.chunk(b'{"stream":"Successfully built c0ffee\\n"}\r\n')
    call.exchange.end_chunks()


def _save(call: Call) -> None:
    """Generate ``engine.save_bytes`` of data; ``request.written`` shows how far the kernel took it."""
    call.exchange.start_chunked(content_type=TAR)
    left, block = call.engine.save_bytes, b"\x5a" * 32768
    while left:
        part = block[: min(left, len(block))]
        call.exchange.chunk(part)
        left -= len(part)
    call.exchange.end_chunks()


def _list(call: Call) -> None:
    call.parse_query()
    call.send_json([])


def _object(call: Call) -> None:
    call.parse_query()
    call.send_json({})


def _json_object(call: Call) -> None:
    call.parse_query()
    call.json_body()
    call.send_json({}, 201 if call.request.path.endswith("/create") else 200)


def _no_swarm(call: Call) -> None:
    raise call.fail(
        503,
        'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect '
        "this node to swarm and try again.",
    )


def _no_checkpoints(call: Call) -> None:
    raise call.fail(
        501,
        "This experimental feature is disabled by default. Start the Docker daemon in experimental mode in "
        "order to enable it.",
    )


def echo(tunnel: Tunnel, late: bytes = b"") -> None:
    """The stock program: `cat`. Input comes back until the client half-closes, then the late output."""
    while data := tunnel.read():
        tunnel.write(data)
    tunnel.write(late)


def swallow(tunnel: Tunnel) -> None:
    """`cat > /dev/null`: read to the end, answer with the digest of what came, as `sha256sum` does."""
    while tunnel.read():
        pass
    tunnel.write(f"{tunnel.request.digest}  -\n".encode())


def route(
    methods: str, template: str, operation: Operation
) -> tuple[frozenset[str], re.Pattern[str], Operation]:
    """Build one row: `{name}` takes any characters but a newline, `{id}` none of slash and newline either."""
    text = template.replace("{name}", "(?P<name>[^\\n]*)").replace("{id}", "(?P<id>[^/\\n]+)")
    pattern = re.compile(r"(?:/v(?P<version>[0-9.]+))?" + text)
    return frozenset(methods.split("|")), pattern, operation


ANY = "GET|POST|PUT|DELETE|HEAD"
ROUTES = [
    (frozenset(ANY.split("|")), re.compile(r"/debug/(vars|pprof/[^\n]*)"), _debug),
    route("GET|POST|DELETE", "/containers/{name}/checkpoints(/[^\\n]*)?", _no_checkpoints),
    route("HEAD", "/containers/{name}/archive", _archive_get),
    route("GET", "/containers/json", _listing),
    route("GET", "/containers/{name}/export", _save),
    route("GET", "/containers/{name}/changes", _list),
    route("GET", "/containers/{name}/json", _inspect),
    route("GET", "/containers/{name}/top", _object),
    route("GET", "/containers/{name}/logs", _logs),
    route("GET", "/containers/{name}/stats", _stats),
    route("GET", "/containers/{name}/attach/ws", _attach_websocket),
    route("GET", "/exec/{name}/json", _object),
    route("GET", "/containers/{name}/archive", _archive_get),
    route("POST", "/containers/create", _create),
    route("POST", "/containers/{name}/(kill|pause|unpause|restart|start|stop|resize|rename)", _done),
    route("POST", "/containers/{name}/wait", _wait),
    route("POST", "/containers/{name}/attach", _attach),
    route("POST", "/containers/{name}/exec", _exec_create),
    route("POST", "/exec/{name}/start", _exec_start),
    route("POST", "/exec/{name}/resize", _object),
    route("POST", "/containers/{name}/update", _json_object),
    route("POST", "/(containers|images|volumes|networks|build)/prune", _object),
    route("POST", "/commit", _json_object),
    route("PUT", "/containers/{name}/archive", _archive_put),
    route("DELETE", "/containers/{name}", _done),
    route("GET", "/images/(json|search)", _list),
    route("GET", "/images/get", _save),
    route("GET", "/images/{name}/get", _save),
    route("GET", "/images/{name}/(history|json)", _object),
    route("POST", "/images/load", _load),
    route("POST", "/images/create", _pull),
    route("POST", "/images/{name}/(push|tag)", _object),
    route("DELETE", "/images/{name}", _list),
    route("OPTIONS", "/{name}", _options),
    route("GET|HEAD", "/_ping", _ping),
    route("GET", "/events", _events),
    route("GET", "/info", _info),
    route("GET", "/version", _version),
    route("GET", "/system/df", _object),
    route("POST", "/auth", _object),
    route("GET", "/volumes(/{name})?", _object),
    route("POST", "/(volumes|networks)/create", _json_object),
    route("DELETE", "/(volumes|networks)/{name}", _object),
    route("POST", "/build", _build),
    route("POST", "/(session|grpc)", _upgrade_h2c),
    route("GET", "/(swarm|services|nodes|tasks|secrets|configs)(/{id})?", _no_swarm),
    route("POST", "/swarm/(init|join|leave|update|unlock)", _object),
    route("POST", "/(services|secrets|configs)/create", _no_swarm),
    route("POST", "/(services|nodes|secrets|configs)/{id}/update", _no_swarm),
    route("DELETE", "/(services|nodes|secrets|configs)/{id}", _no_swarm),
    route("GET", "/(services|tasks)/{id}/logs", _no_swarm),
    route("GET", "/plugins", _list),
    route("GET", "/plugins/(privileges|{name}/json)", _object),
    route("POST", "/plugins/(pull|create|{name}/(enable|disable|push|upgrade|set))", _object),
    route("DELETE", "/plugins/{name}", _object),
    route("GET", "/distribution/{name}/json", _object),
    route("GET", "/networks/?", _list),
    route("GET", "/networks/{name}", _object),
    route("POST", "/networks/{name}/(connect|disconnect)", _json_object),
]

__all__ = ["CONTAINER_ID", "EXEC_ID", "AnsweredError", "Call", "GoneError", "echo", "serve", "swallow"]
