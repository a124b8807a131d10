"""What an event says of a request's or an answer's body: a few particulars, for the record only.

A body is read as the Engine reads it (`go_json`), and little of it is taken: what an auditor asks for first,
and never a secret. Values of the environment and of labels, data of secrets and configs, passwords and keys
have no way into an event; they are left out or shown as ``***``, and `Particulars.redacted` names the field.
Nothing here raises, and what comes out is bounded whatever came in.

The fields are listed in `docs/reference/events.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from defender.contract.body_fields import (
    EMPTY,
    MAX_LIST,
    Fields,
    Taking,
    driver_options,
    entry_text,
    object_of,
    objects_of,
    strings_of,
)
from defender.contract.go_json import Object, UnreadableError, read_json
from defender.contract.redaction import HIDDEN

#: Longest body that is read for the record. Hand over one byte more and it is "too large".
MAX_REQUEST_BODY: Final = 256 * 1024
MAX_ANSWER_BODY: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Particulars:
    """`fields` are JSON values; `redacted` names those of them that are hidden in part or whole."""

    fields: Fields = field(default_factory=dict)
    redacted: tuple[str, ...] = ()


NOTHING: Final = Particulars()


def request_particulars(action: str, body: bytes) -> Particulars:
    """What to record of a request's body. `action` is canonical; nothing of one without a body in JSON."""
    taker = _REQUESTS.get(action)
    return NOTHING if taker is None else _read(taker, body, MAX_REQUEST_BODY)


def answer_particulars(action: str, status: int, body: bytes) -> Particulars:
    """What to record of an answer's body; of one with an error the Engine's message."""
    if not wants_answer(action, status):
        return NOTHING
    if status >= 400:
        read = _read(_error, body, MAX_ANSWER_BODY)
        return NOTHING if "message" not in read.fields else read  # old Engines send errors as plain text
    return _read(_ANSWERS[action], body, MAX_ANSWER_BODY)


def wants_request(action: str) -> bool:
    """Whether the bodies of its requests say something."""
    return action in _REQUESTS


def wants_answer(action: str, status: int) -> bool:
    """Whether the body of such an answer says something."""
    return status >= 400 or (action in _ANSWERS and 200 <= status < 300 and status != 204)


def _read(taker: Callable[[Taking, Object], None], body: bytes, most: int) -> Particulars:
    if not body:
        return NOTHING
    if len(body) > most:
        return Particulars({"body": "too large"})
    taking = Taking()
    try:
        document = read_json(body)
        value = document.value
        if isinstance(value, list):
            value = Object([("", value)], document.repeated)  # a list is taken by the name ""
        if isinstance(value, Object):
            taker(taking, value)
        elif value is not None:
            return Particulars({"body": "unreadable"})
    except (UnreadableError, RecursionError):
        return Particulars({"body": "unreadable"})
    if document.repeated:
        # Readers differ in what this means; the Engine merges.
        taking.fields["repeated"] = [entry_text(name) for name in document.repeated[:MAX_LIST]]
    if document.trailing:
        taking.fields["body"] = "more than one value"
    return Particulars(taking.fields, tuple(taking.redacted))


# -- containers


def _command(config: Object, *names: str) -> list[str]:
    return [word for name in names for word in strings_of(config.get(name))]


def _config(take: Taking, config: Object) -> None:
    """A container's own configuration."""
    take.text("image", config.get("image"))
    take.command("command", _command(config, "entrypoint", "cmd"))
    take.text("user", config.get("user"))
    take.environment(config.get("env"))
    take.labels(config.get("labels"))
    take.command("health_check", _command(object_of(config.get("healthcheck")), "test"))


def _container_create(take: Taking, body: Object) -> None:
    _config(take, body)
    host = body.get("hostconfig")
    # Engines up to 26 take the fields of HostConfig from the top level where there is none.
    _host_config(take, host if isinstance(host, Object) else body)
    endpoints = object_of(object_of(body.get("networkingconfig")).get("endpointsconfig"))
    take.texts("networks", [name for name, _ in endpoints.items()])


def _host_config(take: Taking, host: Object) -> None:
    take.flag("privileged", host.get("privileged"))
    for name, key in (
        ("network", "networkmode"),
        ("pid", "pidmode"),
        ("ipc", "ipcmode"),
        ("uts", "utsmode"),
        ("userns", "usernsmode"),
        ("cgroupns", "cgroupnsmode"),
        ("runtime", "runtime"),
        ("cgroup_parent", "cgroupparent"),
        ("volume_driver", "volumedriver"),
    ):
        take.text(name, host.get(key))
    tmpfs = [f"tmpfs:{target}" for target, _ in object_of(host.get("tmpfs")).items()]
    take.texts("mounts", strings_of(host.get("binds")) + _mounts(host.get("mounts")) + tmpfs)
    take.strings("volumes_from", host.get("volumesfrom"))
    take.strings("cap_add", host.get("capadd"))
    take.strings("capabilities", host.get("capabilities"))
    take.texts("security_opt", [_profile(option) for option in strings_of(host.get("securityopt"))])
    take.strings("device_rules", host.get("devicecgrouprules"))
    take.count("devices", host.get("devices"))
    take.count("device_requests", host.get("devicerequests"))
    take.texts("sysctls", [name for name, _ in object_of(host.get("sysctls")).items()])
    take.texts("ports", _ports(host.get("portbindings")))
    take.strings("links", host.get("links"))
    take.text("restart", object_of(host.get("restartpolicy")).get("name"))
    log = object_of(host.get("logconfig"))
    take.text("log", log.get("type"))
    if len(object_of(log.get("config"))):
        take.names("log_options", [name for name, _ in object_of(log.get("config")).items()])


def _profile(option: str) -> str:
    """A security option; of a whole seccomp profile only how long it is."""
    name, equals, value = option.partition("=")
    return f"{name}=...({len(value)} characters)" if equals and len(value) > 256 else option


def _mounts(value: object) -> list[str]:
    """``TYPE:SOURCE:TARGET`` with ``:ro`` and, of a volume, its driver and the driver's options."""
    shown = []
    for mount in objects_of(value)[: MAX_LIST + 1]:
        parts = [mount.get("type"), mount.get("source"), mount.get("target")]
        text = ":".join(part if isinstance(part, str) else "" for part in parts)
        if mount.get("readonly") is True:
            text += ":ro"
        driver = object_of(object_of(mount.get("volumeoptions")).get("driverconfig"))
        name = driver.get("name")
        options = driver_options(object_of(driver.get("options")))
        if isinstance(name, str) or options:
            text += f" ({' '.join([str(name or 'local'), *options])})"
        shown.append(text)
    return shown + [""] * (len(objects_of(value)) - len(shown))


def _ports(value: object) -> list[str]:
    shown = []
    for port, bindings in object_of(value).items():
        for binding in objects_of(bindings) or [EMPTY]:
            host, ip = binding.get("hostport"), binding.get("hostip")
            address = f"{ip}:" if isinstance(ip, str) and ip else ""
            shown.append(f"{address}{host if isinstance(host, str) else ''}->{port}")
    return shown


def _container_update(take: Taking, body: Object) -> None:
    for name, key in (
        ("memory", "memory"),
        ("memory_swap", "memoryswap"),
        ("memory_reservation", "memoryreservation"),
        ("cpu_shares", "cpushares"),
        ("nano_cpus", "nanocpus"),
        ("cpu_quota", "cpuquota"),
        ("pids_limit", "pidslimit"),
        ("blkio_weight", "blkioweight"),
    ):
        take.number(name, body.get(key))
    take.text("cpuset", body.get("cpusetcpus"))
    take.text("restart", object_of(body.get("restartpolicy")).get("name"))
    take.count("devices", body.get("devices"))


def _exec_create(take: Taking, body: Object) -> None:
    take.command("command", _command(body, "cmd"))
    take.text("user", body.get("user"))
    take.flag("privileged", body.get("privileged"))
    take.flag("tty", body.get("tty"))
    take.flag("stdin", body.get("attachstdin"))
    take.text("directory", body.get("workingdir"))
    take.environment(body.get("env"))


def _exec_start(take: Taking, body: Object) -> None:
    take.flag("detach", body.get("detach"))
    take.flag("tty", body.get("tty"))


def _checkpoint(take: Taking, body: Object) -> None:
    take.text("checkpoint", body.get("checkpointid"))
    take.text("directory", body.get("checkpointdir"))
    take.flag("exit", body.get("exit"))


def _copy(take: Taking, body: Object) -> None:
    take.text("path", body.get("resource"))


# -- volumes and networks


def _volume_create(take: Taking, body: Object) -> None:
    take.text("name", body.get("name"))
    take.text("driver", body.get("driver"))
    take.options("options", body.get("driveropts"))
    take.labels(body.get("labels"))
    cluster = object_of(body.get("clustervolumespec"))
    take.text("group", cluster.get("group"))
    take.withheld("secrets", cluster.get("secrets"))


def _volume_update(take: Taking, body: Object) -> None:
    spec = object_of(body.get("spec"))
    take.text("availability", spec.get("availability"))
    take.withheld("secrets", spec.get("secrets"))


def _network_create(take: Taking, body: Object) -> None:
    take.text("name", body.get("name"))
    take.text("driver", body.get("driver"))
    take.text("scope", body.get("scope"))
    for flag in ("internal", "attachable", "ingress", "configonly"):
        take.flag(flag, body.get(flag))
    ipam = object_of(body.get("ipam"))
    subnets = [entry.get("subnet") for entry in objects_of(ipam.get("config"))]
    take.texts("subnets", [subnet for subnet in subnets if isinstance(subnet, str)])
    options = object_of(body.get("options"))
    if len(options):
        parent = dict(options.items()).get("parent")
        take.text("parent", parent)
        take.names("options", [name for name, _ in options.items()])
    take.labels(body.get("labels"))


def _network_member(take: Taking, body: Object) -> None:
    take.text("container", body.get("container"))
    take.flag("force", body.get("force"))
    endpoint = object_of(body.get("endpointconfig"))
    take.strings("aliases", endpoint.get("aliases"))
    take.text("address", object_of(endpoint.get("ipamconfig")).get("ipv4address"))


# -- swarm


def _swarm_init(take: Taking, body: Object) -> None:
    take.text("listen", body.get("listenaddr"))
    take.text("advertise", body.get("advertiseaddr"))
    take.flag("force_new_cluster", body.get("forcenewcluster"))
    _swarm_spec(take, object_of(body.get("spec")))
    take.flag("auto_lock", body.get("autolockmanagers"))


def _swarm_spec(take: Taking, spec: Object) -> None:
    take.flag("auto_lock", object_of(spec.get("encryptionconfig")).get("autolockmanagers"))
    authority = object_of(spec.get("caconfig"))
    take.withheld("signing_key", authority.get("signingcakey"))
    take.count("external_authorities", authority.get("externalcas"))
    take.labels(spec.get("labels"))


def _swarm_join(take: Taking, body: Object) -> None:
    take.strings("remotes", body.get("remoteaddrs"))
    take.text("listen", body.get("listenaddr"))
    take.text("advertise", body.get("advertiseaddr"))
    take.text("availability", body.get("availability"))
    take.withheld("join_token", body.get("jointoken"))


def _swarm_unlock(take: Taking, body: Object) -> None:
    take.withheld("unlock_key", body.get("unlockkey"))


def _service(take: Taking, body: Object) -> None:
    take.text("name", body.get("name"))
    task = object_of(body.get("tasktemplate"))
    spec = object_of(task.get("containerspec"))
    take.text("image", spec.get("image"))
    take.command("command", _command(spec, "command", "args"))
    take.text("user", spec.get("user"))
    take.text("runtime", task.get("runtime"))
    plugin = object_of(task.get("pluginspec"))
    take.text("plugin", plugin.get("remote"))
    take.environment(strings_of(spec.get("env")) + strings_of(plugin.get("env")))
    take.texts("mounts", _mounts(spec.get("mounts")))
    take.strings("cap_add", spec.get("capabilityadd"))
    for name in ("secrets", "configs"):
        used = [entry.get(f"{name[:-1]}name") for entry in objects_of(spec.get(name))]
        take.texts(name, [entry for entry in used if isinstance(entry, str)])
    take.command("health_check", _command(object_of(spec.get("healthcheck")), "test"))
    networks = objects_of(task.get("networks")) + objects_of(body.get("networks"))
    targets = [network.get("target") for network in networks]
    take.texts("networks", [target for target in targets if isinstance(target, str)])
    take.number("replicas", object_of(object_of(body.get("mode")).get("replicated")).get("replicas"))
    take.count("ports", object_of(body.get("endpointspec")).get("ports"))
    take.text("log", object_of(task.get("logdriver")).get("name"))
    take.labels(body.get("labels"))


def _node(take: Taking, body: Object) -> None:
    for name in ("name", "role", "availability"):
        take.text(name, body.get(name))
    take.labels(body.get("labels"))


def _secret(take: Taking, body: Object) -> None:
    take.text("name", body.get("name"))
    take.text("driver", object_of(body.get("driver")).get("name"))
    take.withheld("data", body.get("data"))
    take.labels(body.get("labels"))


# -- plugins and registries


def _plugin_privileges(take: Taking, body: Object) -> None:
    privileges = []
    for privilege in objects_of(body.get("")):
        name = privilege.get("name")
        values = " ".join(strings_of(privilege.get("value"))[:MAX_LIST])
        privileges.append(f"{name if isinstance(name, str) else ''}: {values}")
    take.texts("privileges", privileges)


def _plugin_set(take: Taking, body: Object) -> None:
    entries = [entry.partition("=") for entry in strings_of(body.get(""))]
    take.names("settings", [key if equals else HIDDEN for key, equals, _ in entries])


def _auth(take: Taking, body: Object) -> None:
    take.text("username", body.get("username"))
    take.text("server", body.get("serveraddress"))
    for name in ("password", "auth", "identitytoken", "registrytoken"):
        take.withheld("password", body.get(name))


_Taker = Callable[[Taking, Object], None]

_REQUESTS: Final[Mapping[str, _Taker]] = {
    "container_create": _container_create,
    "container_update": _container_update,
    "container_commit": _config,
    "container_copyfiles": _copy,
    "container_exec_create": _exec_create,
    "container_exec_start": _exec_start,
    "checkpoint_create": _checkpoint,
    "volume_create": _volume_create,
    "volume_update": _volume_update,
    "network_create": _network_create,
    "network_connect": _network_member,
    "network_disconnect": _network_member,
    "swarm_init": _swarm_init,
    "swarm_join": _swarm_join,
    "swarm_update": _swarm_spec,
    "swarm_unlock": _swarm_unlock,
    "service_create": _service,
    "service_update": _service,
    "node_update": _node,
    "secret_create": _secret,
    "secret_update": _secret,
    "config_create": _secret,
    "config_update": _secret,
    "plugin_pull": _plugin_privileges,
    "plugin_upgrade": _plugin_privileges,
    "plugin_set": _plugin_set,
    "docker_auth": _auth,
}

# -- answers


def _id(take: Taking, body: Object) -> None:
    take.text("id", body.get("id"))


def _inspected(take: Taking, body: Object) -> None:
    _id(take, body)
    take.text("name", body.get("name"))
    take.text("image", object_of(body.get("config")).get("image"))


def _exec_inspected(take: Taking, body: Object) -> None:
    _id(take, body)
    take.text("container", body.get("containerid"))
    process = object_of(body.get("processconfig"))
    take.command("command", _command(process, "entrypoint", "arguments"))
    take.flag("running", body.get("running"))
    code = body.get("exitcode")
    if isinstance(code, int):
        take.fields["exit_code"] = code


def _waited(take: Taking, body: Object) -> None:
    code = body.get("statuscode")
    if isinstance(code, int):
        take.fields["exit_code"] = code


def _volume(take: Taking, body: Object) -> None:
    take.text("name", body.get("name"))
    take.text("driver", body.get("driver"))


def _pruned(take: Taking, body: Object) -> None:
    for key in ("containersdeleted", "imagesdeleted", "volumesdeleted", "networksdeleted", "cachesdeleted"):
        take.count("deleted", body.get(key))
    take.number("bytes", body.get("spacereclaimed"))


def _error(take: Taking, body: Object) -> None:
    """The Engine's own sentence; it repeats what it was given, command lines included."""
    take.message("message", body.get("message"))


_ANSWERS: Final[Mapping[str, _Taker]] = {
    "container_create": _id,
    "container_commit": _id,
    "container_exec_create": _id,
    "container_inspect": _inspected,
    "container_exec_inspect": _exec_inspected,
    "container_wait": _waited,
    "network_create": _id,
    "volume_create": _volume,
    "service_create": _id,
    "secret_create": _id,
    "config_create": _id,
    **dict.fromkeys(
        ("container_prune", "image_prune", "volume_prune", "network_prune", "build_prune"), _pruned
    ),
}

#: Every field that may occur, for the reference page.
MEANINGS: Final[Mapping[str, str]] = {
    "image": "The image of a container or service, as the client named it.",
    "command": "What runs: entrypoint and command of a container or service, the command of an exec. "
    "Secrets in it are hidden; beyond 1024 characters it is cut.",
    "health_check": "The command of a health check, likewise.",
    "user": "The user inside the container.",
    "env": "Names of environment variables; the values are never recorded.",
    "labels": "How many labels; none of them is recorded but the next two.",
    "project": "The project of Compose, or stack of a swarm, that the labels name.",
    "service": "The service that the labels name.",
    "privileged": "`true`: all of the host is open to it.",
    "network": "Network mode: `host`, `container:NAME`, the name of a network.",
    "networks": "Networks that it is connected to.",
    "pid": "Process namespace, if it is not its own; `ipc`, `uts`, `userns` and `cgroupns` likewise.",
    "ipc": "See `pid`.",
    "uts": "See `pid`.",
    "userns": "See `pid`.",
    "cgroupns": "See `pid`.",
    "runtime": "The runtime, if it is named; of a service `plugin` or `container`.",
    "cgroup_parent": "The control group above the container's.",
    "volume_driver": "The driver of its volumes.",
    "mounts": "Binds as `SOURCE:TARGET:MODE`; mounts as `TYPE:SOURCE:TARGET`, with a volume's driver and "
    "its options.",
    "volumes_from": "Containers whose volumes it has.",
    "cap_add": "Capabilities that were added.",
    "capabilities": "The exact list of capabilities, which some Engines take.",
    "security_opt": "Security options; of a seccomp profile its length.",
    "device_rules": "Rules for devices.",
    "devices": "How many devices of the host.",
    "device_requests": "How many requests for devices, such as GPUs.",
    "sysctls": "Names of kernel parameters.",
    "ports": "Published ports, `ADDRESS:PORT->CONTAINER PORT`; of a service how many.",
    "links": "Links to other containers.",
    "restart": "Restart policy.",
    "log": "Log driver.",
    "log_options": "Names of the log driver's options.",
    "memory": "Bytes; the other limits of an update are `memory_swap`, `memory_reservation`, `cpu_shares`, "
    "`nano_cpus`, `cpu_quota`, `pids_limit`, `blkio_weight`, `cpuset`.",
    "memory_swap": "See `memory`.",
    "memory_reservation": "See `memory`.",
    "cpu_shares": "See `memory`.",
    "nano_cpus": "See `memory`.",
    "cpu_quota": "See `memory`.",
    "pids_limit": "See `memory`.",
    "blkio_weight": "See `memory`.",
    "cpuset": "See `memory`.",
    "tty": "`true`: an exec with a terminal.",
    "stdin": "`true`: an exec that reads input.",
    "detach": "`true`: an exec that nobody is attached to.",
    "directory": "Working directory of an exec; where a checkpoint is kept.",
    "checkpoint": "Name of a checkpoint.",
    "exit": "`true`: the container stops after the checkpoint.",
    "path": "The path that is copied.",
    "name": "Name of what is created or changed.",
    "driver": "Driver of a volume, network or secret.",
    "options": "A volume's driver options, with the values of `type`, `device`, `size` and the harmless part "
    "of `o`; names of a network's options.",
    "group": "Group of a cluster volume.",
    "availability": "Of a node or cluster volume.",
    "scope": "Scope of a network.",
    "internal": "`true`: a network without a way out; `attachable`, `ingress`, `configonly` likewise.",
    "attachable": "See `internal`.",
    "ingress": "See `internal`.",
    "configonly": "See `internal`.",
    "subnets": "Subnets of a network.",
    "parent": "The host's interface that a network is on.",
    "container": "The container that is connected; the one of an exec.",
    "force": "`true`: forced.",
    "aliases": "Names in the network.",
    "address": "IPv4 address in the network.",
    "listen": "Address of a swarm's manager; `advertise` is the one it tells.",
    "advertise": "See `listen`.",
    "remotes": "Managers of the swarm that is joined.",
    "force_new_cluster": "`true`: a new cluster of one's own.",
    "auto_lock": "`true`: managers are locked with a key.",
    "external_authorities": "How many external authorities of certificates.",
    "role": "Role of a node.",
    "plugin": "The plugin that a service runs.",
    "secrets": "Names of a service's secrets; of a volume `***`.",
    "configs": "Names of a service's configs.",
    "replicas": "Replicas of a service.",
    "privileges": "What a plugin is granted.",
    "settings": "Names of a plugin's settings.",
    "username": "User of a registry; `server` is the registry.",
    "server": "See `username`.",
    "password": "`***`: a password or token came. So with `data`, `join_token`, `signing_key`, `unlock_key`.",
    "data": "See `password`.",
    "join_token": "See `password`.",
    "signing_key": "See `password`.",
    "unlock_key": "See `password`.",
    "id": "Of an answer: the id of what was created or looked at.",
    "running": "Of an answer: `true` if the exec runs.",
    "exit_code": "Of an answer: with what the container or exec ended.",
    "deleted": "Of an answer: how many were deleted; `bytes` is what that freed.",
    "bytes": "See `deleted`.",
    "message": "Of an answer with an error: the Engine's words.",
    "repeated": "Names that the body repeats. Readers differ in what that means; shown is what the Engine "
    "makes of it.",
    "body": "`unreadable`, `too large` (over 256 KiB; an answer over 64 KiB), or `more than one value`.",
}
