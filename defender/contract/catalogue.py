"""The catalogue: every operation of the Engine API that has an action, in the Engine's own match order.

Written from two tables of facts, `tests/data/routes.tsv` (the Engine's routes, API 1.24 to 1.56) and
`tests/data/actions.tsv` (their names in policy); `tests/defender/contract/test_actions.py` holds every row
equal to both.  Routes without an action (OPTIONS, HTTP/2, historic ones) are absent: what is absent is
`unknown`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Body(enum.Enum):
    """What the Engine reads from a request's body."""

    NONE = "none"
    JSON = "json"
    TAR = "tar"
    WEBSOCKET = "websocket"
    H2C = "h2c"


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of the Engine API.

    `order` is its row in the tables, `template` its versionless path with `{variables}`, `action` its
    canonical name and `aliases` the other accepted ones.  `record_first`: its attempt is durable before it is
    forwarded. `explicit`: a policy reaches it by a literal name or exactly `*` only.  `hijack`: the Engine
    may take the connection out of HTTP.  `streaming`: an answer of any length or duration.  `since` is the
    oldest API version that has it ((1, 12) stands for that one or older); `deprecated` says until when or
    under which condition, "" if always.
    """

    order: int
    method: str
    template: str
    action: str
    aliases: tuple[str, ...]
    record_first: bool
    explicit: bool
    hijack: bool
    streaming: bool
    body: Body
    since: tuple[int, int]
    deprecated: str


def _row(
    order: int,
    method: str,
    template: str,
    action: str,
    marks: str,
    body: Body,
    *,
    since: int = 12,
    aliases: str = "",
    limits: str = "",
) -> Operation:
    """One row; `marks` are r(ecord_first), x (explicit), h(ijack), s(treaming), `since` the minor API
    version."""
    return Operation(
        order=order,
        method=method,
        template=template,
        action=action,
        aliases=tuple(aliases.split()),
        record_first="r" in marks,
        explicit="x" in marks,
        hijack="h" in marks,
        streaming="s" in marks,
        body=body,
        since=(1, since),
        deprecated=limits,
    )


_GATED = "gated only on >=29"
_EXPERIMENTAL = "experimental only"
_SUPERSEDED = "deprecated since API 1.53, still served by master"
_DEBUG = "engines <=27.x: ANY method, unversioned path only; engines >=28.0: GET only, versioned path too"

# fmt: off
CATALOGUE: tuple[Operation, ...] = (
    _row(1, "GET", "/containers/{name:.*}/checkpoints", "checkpoint_list", "", Body.NONE, since=26,
         limits="experimental daemons only (else 501)"),
    _row(2, "POST", "/containers/{name:.*}/checkpoints", "checkpoint_create", "rx", Body.JSON, since=26,
         limits=_EXPERIMENTAL),
    _row(3, "DELETE", "/containers/{name}/checkpoints/{checkpoint}", "checkpoint_delete", "rx",
         Body.NONE, since=26, limits=_EXPERIMENTAL),
    _row(4, "HEAD", "/containers/{name:.*}/archive", "container_archive_info", "", Body.NONE, since=20,
         aliases="container_archive_head"),
    _row(5, "GET", "/containers/json", "container_list", "", Body.NONE),
    _row(6, "GET", "/containers/{name:.*}/export", "container_export", "rs", Body.NONE),
    _row(7, "GET", "/containers/{name:.*}/changes", "container_changes", "", Body.NONE),
    _row(8, "GET", "/containers/{name:.*}/json", "container_inspect", "", Body.NONE),
    _row(9, "GET", "/containers/{name:.*}/top", "container_top", "", Body.NONE),
    _row(10, "GET", "/containers/{name:.*}/logs", "container_logs", "s", Body.NONE),
    _row(11, "GET", "/containers/{name:.*}/stats", "container_stats", "s", Body.NONE, since=17),
    _row(12, "GET", "/containers/{name:.*}/attach/ws", "container_attach_websocket", "rhs",
         Body.WEBSOCKET, aliases="container_attachws"),
    _row(13, "GET", "/exec/{id:.*}/json", "container_exec_inspect", "", Body.NONE, since=16),
    _row(14, "GET", "/containers/{name:.*}/archive", "container_archive", "rs", Body.NONE, since=20),
    _row(15, "POST", "/containers/create", "container_create", "r", Body.JSON),
    _row(16, "POST", "/containers/{name:.*}/kill", "container_kill", "r", Body.NONE),
    _row(17, "POST", "/containers/{name:.*}/pause", "container_pause", "r", Body.NONE),
    _row(18, "POST", "/containers/{name:.*}/unpause", "container_unpause", "r", Body.NONE),
    _row(19, "POST", "/containers/{name:.*}/restart", "container_restart", "r", Body.NONE),
    _row(20, "POST", "/containers/{name:.*}/start", "container_start", "r", Body.NONE),
    _row(21, "POST", "/containers/{name:.*}/stop", "container_stop", "r", Body.NONE),
    _row(22, "POST", "/containers/{name:.*}/wait", "container_wait", "s", Body.NONE),
    _row(23, "POST", "/containers/{name:.*}/resize", "container_resize", "", Body.NONE),
    _row(24, "POST", "/containers/{name:.*}/attach", "container_attach", "rhs", Body.NONE),
    _row(25, "POST", "/containers/{name:.*}/copy", "container_copyfiles", "rs", Body.JSON,
         limits="answers 404 for API>=1.24; route removed in engine 26.0 (still in 25.0)"),
    _row(26, "POST", "/containers/{name:.*}/exec", "container_exec_create", "r", Body.JSON, since=15),
    _row(27, "POST", "/exec/{name:.*}/start", "container_exec_start", "rhs", Body.JSON, since=15),
    _row(28, "POST", "/exec/{name:.*}/resize", "container_exec_resize", "", Body.NONE, since=15),
    _row(29, "POST", "/containers/{name:.*}/rename", "container_rename", "r", Body.NONE, since=17),
    _row(30, "POST", "/containers/{name:.*}/update", "container_update", "r", Body.JSON, since=22),
    _row(31, "POST", "/containers/prune", "container_prune", "r", Body.NONE, since=25,
         limits="gated (400 below) only on engines >=29"),
    _row(32, "POST", "/commit", "container_commit", "r", Body.JSON),
    _row(33, "PUT", "/containers/{name:.*}/archive", "container_archive_extract", "rs", Body.TAR,
         since=20, aliases="container_extract"),
    _row(34, "DELETE", "/containers/{name:.*}", "container_delete", "r", Body.NONE,
         aliases="container_remove"),
    _row(35, "GET", "/images/json", "image_list", "", Body.NONE),
    _row(36, "GET", "/images/search", "images_search", "", Body.NONE, aliases="image_search"),
    _row(37, "GET", "/images/get", "images_archive", "rs", Body.NONE, since=15, aliases="image_archive"),
    _row(38, "GET", "/images/{name:.*}/get", "image_save", "rs", Body.NONE,
         aliases="images_archive image_archive"),
    _row(39, "GET", "/images/{name:.*}/history", "image_history", "", Body.NONE),
    _row(40, "GET", "/images/{name:.*}/json", "image_inspect", "", Body.NONE),
    _row(41, "GET", "/images/{name:.*}/attestations", "image_attestations", "", Body.NONE, since=55),
    _row(42, "POST", "/images/load", "images_load", "rs", Body.TAR, aliases="image_load"),
    _row(43, "POST", "/images/create", "image_create", "rs", Body.TAR, aliases="image_pull"),
    _row(44, "POST", "/images/{name:.*}/push", "image_push", "rs", Body.NONE),
    _row(45, "POST", "/images/{name:.*}/tag", "image_tag", "r", Body.NONE),
    _row(46, "POST", "/images/prune", "image_prune", "r", Body.NONE, since=25, limits=_GATED),
    _row(47, "DELETE", "/images/{name:.*}", "image_delete", "r", Body.NONE, aliases="image_remove"),
    _row(49, "GET", "/_ping", "docker_ping", "", Body.NONE),
    _row(50, "HEAD", "/_ping", "docker_ping", "", Body.NONE, since=40),
    _row(51, "GET", "/events", "docker_events", "s", Body.NONE),
    _row(52, "GET", "/info", "docker_info", "", Body.NONE),
    _row(53, "GET", "/version", "docker_version", "", Body.NONE),
    _row(54, "GET", "/system/df", "system_df", "", Body.NONE, since=25),
    _row(55, "POST", "/auth", "docker_auth", "", Body.JSON, aliases="docker_check_auth"),
    _row(56, "GET", "/volumes", "volume_list", "", Body.NONE, since=21),
    _row(57, "GET", "/volumes/{name:.*}", "volume_inspect", "", Body.NONE, since=21),
    _row(58, "POST", "/volumes/create", "volume_create", "r", Body.JSON, since=21),
    _row(59, "POST", "/volumes/prune", "volume_prune", "r", Body.NONE, since=25, limits=_GATED),
    _row(60, "PUT", "/volumes/{name:.*}", "volume_update", "r", Body.JSON, since=42),
    _row(61, "DELETE", "/volumes/{name:.*}", "volume_remove", "r", Body.NONE, since=21,
         aliases="volume_delete"),
    _row(62, "POST", "/build", "image_build", "rs", Body.TAR),
    _row(63, "POST", "/build/prune", "build_prune", "r", Body.NONE, since=31, limits=_GATED),
    _row(64, "POST", "/build/cancel", "build_cancel", "r", Body.NONE, since=38),
    _row(65, "POST", "/session", "session", "rxhs", Body.H2C, since=31, limits=_SUPERSEDED),
    _row(66, "POST", "/swarm/init", "swarm_init", "rx", Body.JSON, since=24),
    _row(67, "POST", "/swarm/join", "swarm_join", "rx", Body.JSON, since=24),
    _row(68, "POST", "/swarm/leave", "swarm_leave", "rx", Body.NONE, since=24),
    _row(69, "GET", "/swarm", "swarm_inspect", "", Body.NONE, since=24),
    _row(70, "GET", "/swarm/unlockkey", "swarm_unlock_key", "x", Body.NONE, since=24),
    _row(71, "POST", "/swarm/update", "swarm_update", "rx", Body.JSON, since=24),
    _row(72, "POST", "/swarm/unlock", "swarm_unlock", "rx", Body.JSON, since=24),
    _row(73, "GET", "/services", "service_list", "", Body.NONE, since=24),
    _row(74, "GET", "/services/{id}", "service_inspect", "", Body.NONE, since=24),
    _row(75, "POST", "/services/create", "service_create", "r", Body.JSON, since=24),
    _row(76, "POST", "/services/{id}/update", "service_update", "r", Body.JSON, since=24),
    _row(77, "DELETE", "/services/{id}", "service_delete", "r", Body.NONE, since=24,
         aliases="service_remove"),
    _row(78, "GET", "/services/{id}/logs", "service_logs", "s", Body.NONE, since=29),
    _row(79, "GET", "/nodes", "node_list", "", Body.NONE, since=24),
    _row(80, "GET", "/nodes/{id}", "node_inspect", "", Body.NONE, since=24),
    _row(81, "DELETE", "/nodes/{id}", "node_delete", "r", Body.NONE, since=24, aliases="node_remove"),
    _row(82, "POST", "/nodes/{id}/update", "node_update", "r", Body.JSON, since=24),
    _row(83, "GET", "/tasks", "task_list", "", Body.NONE, since=24),
    _row(84, "GET", "/tasks/{id}", "task_inspect", "", Body.NONE, since=24),
    _row(85, "GET", "/tasks/{id}/logs", "task_logs", "s", Body.NONE, since=29),
    _row(86, "GET", "/secrets", "secret_list", "", Body.NONE, since=25, limits=_GATED),
    _row(87, "POST", "/secrets/create", "secret_create", "r", Body.JSON, since=25, limits=_GATED),
    _row(88, "DELETE", "/secrets/{id}", "secret_delete", "r", Body.NONE, since=25,
         aliases="secret_remove", limits=_GATED),
    _row(89, "GET", "/secrets/{id}", "secret_inspect", "", Body.NONE, since=25, limits=_GATED),
    _row(90, "POST", "/secrets/{id}/update", "secret_update", "r", Body.JSON, since=25, limits=_GATED),
    _row(91, "GET", "/configs", "config_list", "", Body.NONE, since=30, limits=_GATED),
    _row(92, "POST", "/configs/create", "config_create", "r", Body.JSON, since=30, limits=_GATED),
    _row(93, "DELETE", "/configs/{id}", "config_delete", "r", Body.NONE, since=30,
         aliases="config_remove", limits=_GATED),
    _row(94, "GET", "/configs/{id}", "config_inspect", "", Body.NONE, since=30, limits=_GATED),
    _row(95, "POST", "/configs/{id}/update", "config_update", "r", Body.JSON, since=30, limits=_GATED),
    _row(96, "GET", "/plugins", "plugin_list", "", Body.NONE, since=25, limits="1.24 experimental"),
    _row(97, "GET", "/plugins/{name:.*}/json", "plugin_inspect", "", Body.NONE, since=25),
    _row(98, "GET", "/plugins/privileges", "plugin_privileges", "", Body.NONE, since=25),
    _row(99, "DELETE", "/plugins/{name:.*}", "plugin_delete", "rx", Body.NONE, since=25,
         aliases="plugin_remove"),
    _row(100, "POST", "/plugins/{name:.*}/enable", "plugin_enable", "rx", Body.NONE, since=25),
    _row(101, "POST", "/plugins/{name:.*}/disable", "plugin_disable", "rx", Body.NONE, since=25),
    _row(102, "POST", "/plugins/pull", "plugin_pull", "rxs", Body.JSON, since=25),
    _row(103, "POST", "/plugins/{name:.*}/push", "plugin_push", "rxs", Body.NONE, since=25),
    _row(104, "POST", "/plugins/{name:.*}/upgrade", "plugin_upgrade", "rxs", Body.JSON, since=26,
         limits=_GATED),
    _row(105, "POST", "/plugins/{name:.*}/set", "plugin_set", "rx", Body.JSON, since=25),
    _row(106, "POST", "/plugins/create", "plugin_create", "rx", Body.TAR, since=25),
    _row(107, "GET", "/distribution/{name:.*}/json", "distribution_inspect", "", Body.NONE, since=30,
         limits=_GATED),
    _row(108, "GET", "/networks", "network_list", "", Body.NONE, since=21),
    _row(109, "GET", "/networks/", "network_list", "", Body.NONE, since=21),
    _row(110, "GET", "/networks/{id:.+}", "network_inspect", "", Body.NONE, since=21),
    _row(111, "POST", "/networks/create", "network_create", "r", Body.JSON, since=21),
    _row(112, "POST", "/networks/{id:.*}/connect", "network_connect", "r", Body.JSON, since=21),
    _row(113, "POST", "/networks/{id:.*}/disconnect", "network_disconnect", "r", Body.JSON, since=21),
    _row(114, "POST", "/networks/prune", "network_prune", "r", Body.NONE, since=25, limits=_GATED),
    _row(115, "DELETE", "/networks/{id:.*}", "network_remove", "r", Body.NONE, since=21,
         aliases="network_delete"),
    _row(116, "GET", "/debug/vars", "debug", "rx", Body.NONE, limits=_DEBUG),
    _row(117, "GET", "/debug/pprof/", "debug", "rx", Body.NONE, limits=_DEBUG),
    _row(118, "GET", "/debug/pprof/cmdline", "debug", "rx", Body.NONE, limits=_DEBUG),
    _row(119, "GET", "/debug/pprof/profile", "debug", "rxs", Body.NONE, limits=_DEBUG),
    _row(120, "GET", "/debug/pprof/symbol", "debug", "rx", Body.NONE, limits=_DEBUG),
    _row(121, "GET", "/debug/pprof/trace", "debug", "rxs", Body.NONE, limits=_DEBUG),
    _row(122, "GET", "/debug/pprof/{name}", "debug", "rx", Body.NONE, limits=_DEBUG),
    _row(123, "POST", "/grpc", "grpc", "rxhs", Body.H2C, since=40, limits=_SUPERSEDED),
)
# fmt: on
"""In match order: the first row that matches a request is its operation."""

UNKNOWN = Operation(
    order=0,
    method="",
    template="",
    action="unknown",
    aliases=(),
    record_first=True,
    explicit=True,
    hijack=False,
    streaming=False,
    body=Body.NONE,
    since=(1, 12),
    deprecated="",
)
"""What no row matches.  No policy can allow it, and it is never forwarded."""
