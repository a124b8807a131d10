"""What events say of bodies: what an auditor asks for, bounded, and no secret."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any

from hypothesis import given, settings, strategies
from twisted.trial.unittest import SynchronousTestCase

from defender.contract import particulars
from defender.contract.actions import OPERATIONS, Body
from defender.contract.particulars import (
    MAX_ANSWER_BODY,
    MAX_REQUEST_BODY,
    NOTHING,
    Particulars,
    answer_particulars,
    request_particulars,
    wants_answer,
    wants_request,
)
from defender.contract.redaction import words_of

CANARY = "xQ7canary"


_KEYS = sorted(
    words_of("""
        HostConfig Mounts Binds Cmd Env Labels Image TaskTemplate ContainerSpec Spec DriverOpts Options
        VolumeOptions DriverConfig PortBindings Name o LogConfig Config
    """)
)


def of(action: str, body: object) -> Particulars:
    return request_particulars(action, json.dumps(body).encode())


class Containers(SynchronousTestCase):
    maxDiff = None  # noqa: N815 - unittest's name

    def test_create(self) -> None:
        read = of(
            "container_create",
            {
                "Image": "nginx:1.25",
                "Entrypoint": ["/entry.sh"],
                "Cmd": ["app", "--password", CANARY],
                "User": "1000",
                "Env": ["PATH=/bin", f"DB_PASSWORD={CANARY}"],
                "Labels": {"com.docker.compose.project": "shop", "x": CANARY},
                "HostConfig": {
                    "Privileged": True,
                    "NetworkMode": "host",
                    "PidMode": "host",
                    "Binds": ["/etc:/host:ro"],
                    "Mounts": [
                        {"Type": "bind", "Source": "/", "Target": "/all", "ReadOnly": True},
                        {
                            "Type": "volume",
                            "Source": "v",
                            "Target": "/v",
                            "VolumeOptions": {
                                "DriverConfig": {
                                    "Name": "local",
                                    "Options": {
                                        "type": "cifs",
                                        "o": f"addr=h,password={CANARY}",
                                        "device": "//h/s",
                                    },
                                }
                            },
                        },
                    ],
                    "CapAdd": ["SYS_ADMIN"],
                    "Devices": [{}, {}],
                    "SecurityOpt": ["seccomp=unconfined", "seccomp=" + "{}" * 9999],
                    "PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}]},
                    "RestartPolicy": {"Name": "always"},
                    "LogConfig": {"Type": "splunk", "Config": {"splunk-token": CANARY}},
                },
                "NetworkingConfig": {"EndpointsConfig": {"front": {}}},
            },
        )
        self.assertEqual(
            read.fields,
            {
                "image": "nginx:1.25",
                "command": "/entry.sh app --password ***",
                "user": "1000",
                "env": ["PATH", "DB_PASSWORD"],
                "labels": 2,
                "project": "shop",
                "privileged": True,
                "network": "host",
                "pid": "host",
                "mounts": [
                    "/etc:/host:ro",
                    "bind:/:/all:ro",
                    "volume:v:/v (local type=cifs o=addr=h,password=*** device=//h/s)",
                ],
                "cap_add": ["SYS_ADMIN"],
                "security_opt": ["seccomp=unconfined", "seccomp=...(19998 characters)"],
                "devices": 2,
                "ports": ["127.0.0.1:8080->80/tcp"],
                "restart": "always",
                "log": "splunk",
                "log_options": ["splunk-token"],
                "networks": ["front"],
            },
        )
        self.assertEqual(set(read.redacted), {"command", "env", "labels", "mounts", "log_options"})

    def test_the_spellings_that_the_engine_accepts(self) -> None:
        for body in (
            '{"HostConfig": {"Privileged": true}, "HostConfig": {}}',
            '{"ho\\u017ftconfig": {"PRIVILEGED": true}}',
            '{"Image": "x", "Privileged": true}',
            '{"HostConfig": null, "Privileged": true}',
            '{"HostConfig": {"Privileged": true}} {"HostConfig": {}}',
        ):
            read = request_particulars("container_create", body.encode())
            self.assertIs(read.fields.get("privileged"), True, body)
        self.assertEqual(
            of("container_create", {"Cmd": "echo hi", "HostConfig": {"CapAdd": "ALL"}}).fields,
            {"command": "'echo hi'", "cap_add": ["ALL"]},
        )

    def test_what_is_read_differently_is_said(self) -> None:
        read = request_particulars("container_create", b'{"Image": "a", "IMAGE": "b"} x')
        self.assertEqual(read.fields, {"image": "b", "repeated": ["image"], "body": "more than one value"})

    def test_exec(self) -> None:
        self.assertEqual(
            of(
                "container_exec_create",
                {
                    "Cmd": ["mysql", "-pS3cret"],
                    "User": "root",
                    "Privileged": True,
                    "Tty": True,
                    "Env": ["A=b"],
                },
            ),
            Particulars(
                {"command": "mysql -p***", "user": "root", "privileged": True, "tty": True, "env": ["A"]},
                ("command", "env"),
            ),
        )
        self.assertEqual(of("container_exec_start", {"Detach": True, "Tty": False}).fields, {"detach": True})

    def test_answers(self) -> None:
        ident = "ab" * 32
        for action in ("container_create", "container_exec_create"):
            body = json.dumps({"Id": ident, "Warnings": []}).encode()
            self.assertEqual(answer_particulars(action, 201, body).fields, {"id": ident})
        body = json.dumps(
            {"Id": ident, "Name": "/web", "Config": {"Image": "nginx", "Env": [f"A={CANARY}"]}}
        ).encode()
        self.assertEqual(
            answer_particulars("container_inspect", 200, body).fields,
            {"id": ident, "name": "/web", "image": "nginx"},
        )
        body = json.dumps(
            {
                "ID": "e",
                "ContainerID": ident,
                "ProcessConfig": {"entrypoint": "app", "arguments": ["--token", CANARY]},
            }
        ).encode()
        read = answer_particulars("container_exec_inspect", 200, body)
        self.assertEqual(read.fields, {"id": "e", "container": ident, "command": "app --token ***"})
        self.assertEqual(read.redacted, ("command",))

    def test_the_engines_own_words_of_an_error(self) -> None:
        read = answer_particulars("container_exec_start", 409, b'{"message": "container abc is not running"}')
        self.assertEqual(read.fields, {"message": "container abc is not running"})
        read = answer_particulars(
            "container_create",
            400,
            json.dumps({"message": f'exec: "--password={CANARY}": not found'}).encode(),
        )
        self.assertNotIn(CANARY, str(read))
        self.assertEqual(answer_particulars("container_list", 500, b"plain words"), NOTHING)


#: Every action whose body may hold a secret, with `@` in each place of one.
SECRETS: tuple[tuple[str, Any], ...] = (
    ("container_create", {"Env": ["A=@"], "Labels": {"a": "@"}}),
    ("container_create", {"Cmd": ["app", "--password=@"], "Entrypoint": ["env", "TOKEN=@"]}),
    ("container_create", {"Cmd": "app --password @"}),
    ("container_create", {"Healthcheck": {"Test": ["CMD-SHELL", "curl -u bob:@ h"]}}),
    ("container_create", {"HostConfig": {"LogConfig": {"Type": "x", "Config": {"token": "@"}}}}),
    (
        "container_create",
        {
            "HostConfig": {
                "Mounts": [
                    {
                        "Type": "volume",
                        "VolumeOptions": {
                            "Labels": {"a": "@"},
                            "DriverConfig": {"Options": {"password": "@", "o": "username=a,password=@,@"}},
                        },
                    }
                ]
            }
        },
    ),
    (
        "container_create",
        {"HostConfig": {"StorageOpt": {"a": "@"}, "Annotations": {"a": "@"}, "Sysctls": {"a": "@"}}},
    ),
    ("container_commit", {"Env": ["A=@"], "Cmd": ["app", "--token", "@"], "Labels": {"a": "@"}}),
    ("container_exec_create", {"Cmd": ["mysql", "-p@"], "Env": ["A=@"]}),
    (
        "volume_create",
        {"Name": "v", "DriverOpts": {"password": "@", "o": "addr=h,vers=3,pass=@,@=@", "key": "@"}},
    ),
    ("volume_create", {"DriverOpts": {"device": "//bob:@@h/share", "type": "cifs"}}),
    ("volume_create", {"DriverOpts": {"device": "bob:@@h:/share"}, "Labels": {"a": "@"}}),
    ("volume_create", {"ClusterVolumeSpec": {"Secrets": [{"Key": "@", "Secret": "@"}]}}),
    ("volume_update", {"Spec": {"Secrets": [{"Key": "@", "Secret": "@"}]}}),
    ("network_create", {"Name": "n", "Options": {"encrypted": "@"}, "IPAM": {"Options": {"a": "@"}}}),
    ("network_connect", {"Container": "c", "EndpointConfig": {"DriverOpts": {"a": "@"}}}),
    ("secret_create", {"Name": "s", "Data": "@", "Labels": {"a": "@"}, "Driver": {"Options": {"a": "@"}}}),
    ("secret_update", {"Name": "s", "Data": "@"}),
    ("config_create", {"Name": "s", "Data": "@"}),
    ("config_update", {"Name": "s", "Data": "@"}),
    ("swarm_init", {"Spec": {"CAConfig": {"SigningCAKey": "@", "ExternalCAs": [{"Options": {"a": "@"}}]}}}),
    ("swarm_join", {"JoinToken": "@", "RemoteAddrs": ["h:1"]}),
    ("swarm_update", {"CAConfig": {"SigningCAKey": "@"}, "JoinTokens": {"Worker": "@", "Manager": "@"}}),
    ("swarm_unlock", {"UnlockKey": "@"}),
    (
        "docker_auth",
        {"username": "bob", "password": "@", "auth": "@", "identitytoken": "@", "registrytoken": "@"},
    ),
    ("plugin_set", ["PASSWORD=@"]),
    (
        "service_create",
        {
            "Name": "s",
            "Labels": {"a": "@"},
            "TaskTemplate": {
                "ContainerSpec": {
                    "Env": ["A=@"],
                    "Args": ["--api-key", "@"],
                    "Command": ["env", "PASSWORD=@"],
                    "Labels": {"a": "@"},
                    "Privileges": {"CredentialSpec": {"Config": "@"}},
                },
                "PluginSpec": {"Remote": "https://bob:@@h/p", "Env": ["A=@"]},
                "LogDriver": {"Name": "x", "Options": {"token": "@"}},
            },
        },
    ),
)
ANSWERS: tuple[tuple[str, int, Any], ...] = (
    ("docker_auth", 200, {"Status": "ok", "IdentityToken": "@"}),
    ("swarm_inspect", 200, {"JoinTokens": {"Worker": "@"}}),
    ("swarm_unlock_key", 200, {"UnlockKey": "@"}),
    (
        "container_inspect",
        200,
        {"Id": "1", "Config": {"Env": ["A=@"], "Cmd": ["--password=@"], "Labels": {"a": "@"}}},
    ),
    ("container_exec_inspect", 200, {"ProcessConfig": {"entrypoint": "mysql", "arguments": ["-p@"]}}),
    ("volume_create", 201, {"Name": "v", "Options": {"o": "password=@"}, "Labels": {"a": "@"}}),
    ("container_create", 400, {"message": "invalid option --password=@"}),
)


def planted(value: Any, secret: str) -> Any:
    """The body with `secret` in place of each `@`; `@@` stands for a secret and an at sign."""
    if isinstance(value, str):
        return value.replace("@@", "\0@").replace("@", secret).replace(f"\0{secret}", f"{secret}@")
    if isinstance(value, list):
        return [planted(entry, secret) for entry in value]
    if isinstance(value, dict):
        return {planted(key, secret): planted(entry, secret) for key, entry in value.items()}
    return value


class Canaries(SynchronousTestCase):
    @settings(max_examples=300, deadline=None)
    @given(
        strategies.sampled_from(SECRETS),
        strategies.text("abcXYZ0189+/_.,;:=%$#!?*()[]{}|&<>~^-", max_size=20),
    )
    def test_no_body_shows_its_secret(self, place: tuple[str, Any], around: str) -> None:
        action, body = place
        read = of(action, planted(body, CANARY + around + CANARY))
        self.assertNotIn(CANARY, repr(read))
        self.assertNotEqual(read.fields.get("body"), "unreadable")

    def test_an_entry_without_a_name_is_hidden_whole(self) -> None:
        self.assertEqual(of("container_create", {"Env": [CANARY, "A=b"]}).fields, {"env": ["***", "A"]})
        self.assertEqual(of("plugin_set", [CANARY]).fields, {"settings": ["***"]})

    def test_every_field_that_is_hidden_is_named(self) -> None:
        for action, body in SECRETS:
            read = of(action, planted(body, CANARY))
            for name, value in read.fields.items():
                if "***" in str(value):
                    self.assertIn(name, read.redacted)
            self.assertLessEqual(set(read.redacted), set(read.fields))

    def test_no_answer_shows_its_secret(self) -> None:
        for action, status, body in ANSWERS:
            read = answer_particulars(action, status, json.dumps(planted(body, CANARY)).encode())
            self.assertNotIn(CANARY, repr(read))


class Bounds(SynchronousTestCase):
    def test_every_action_with_a_body_in_json_is_read(self) -> None:
        actions = {operation.action for operation in OPERATIONS if operation.body is Body.JSON}
        self.assertEqual({action for action in actions if not wants_request(action)}, set())
        for operation in OPERATIONS:
            if operation.body is not Body.JSON:
                self.assertFalse(wants_request(operation.action), operation.action)

    def test_a_body_that_is_too_large_is_not_read(self) -> None:
        body = b'{"Image": "' + b"a" * MAX_REQUEST_BODY + b'"}'
        self.assertEqual(request_particulars("container_create", body).fields, {"body": "too large"})
        body = b'{"Id": "' + b"a" * MAX_ANSWER_BODY + b'"}'
        self.assertEqual(answer_particulars("container_create", 201, body).fields, {"body": "too large"})

    def test_what_cannot_be_read_is_said(self) -> None:
        for body in (b"{", b"\xff", b'"text"', b"5", b"[" * 9999, b"{" + b'"a":' * 9999):
            self.assertEqual(request_particulars("container_create", body).fields, {"body": "unreadable"})
        for body in (b"", b"null", b"{}", b"[]"):
            self.assertEqual(request_particulars("container_create", body), NOTHING)

    def test_every_field_has_a_meaning(self) -> None:
        """Those of the table are the names that the code gives, and no others."""
        source = inspect.getsource(particulars).partition("MEANINGS: Final")[0]
        named = set(re.findall(r"""take\.\w+\(\s*"(\w+)",|\("(\w+)", "\w+"\),""", source))
        names = {name for pair in named for name in pair if name}
        names |= {
            "internal",
            "attachable",
            "ingress",
            "configonly",
            "role",
            "availability",
            "secrets",
            "configs",
        }
        names |= {"env", "labels", "project", "service", "exit_code", "repeated", "body"}
        self.assertEqual(names, set(particulars.MEANINGS))

    def test_an_answer_that_says_nothing_is_not_asked_for(self) -> None:
        self.assertFalse(wants_answer("container_list", 200))
        self.assertFalse(wants_answer("container_create", 204))
        self.assertFalse(wants_answer("container_exec_start", 101))
        self.assertTrue(wants_answer("container_list", 404))

    def test_what_comes_out_is_small_whatever_comes_in(self) -> None:
        many = ["x" * 90] * 400
        read = of(
            "container_create",
            {
                "Image": "i" * 9000,
                "Cmd": many,
                "Env": [f"{entry}=1" for entry in many],
                "HostConfig": {
                    "Binds": many,
                    "CapAdd": many,
                    "SecurityOpt": many,
                    "Mounts": [{"Source": "y" * 300}] * 200,
                },
            },
        )
        self.assertLess(len(json.dumps(read.fields)), 16_384)
        self.assertEqual(read.fields["image"], "***(9000 characters)")
        mounts = read.fields["mounts"]
        assert isinstance(mounts, list)
        self.assertEqual(mounts[-1], "... 584 more")

    def test_endless_repeats_are_refused(self) -> None:
        body = b"{" + b",".join([b'"HostConfig": {"Binds": []}'] * 1000) + b"}"
        self.assertEqual(request_particulars("container_create", body).fields, {"body": "unreadable"})

    @settings(max_examples=300, deadline=None)
    @given(
        strategies.sampled_from(sorted({operation.action for operation in OPERATIONS})),
        strategies.recursive(
            strategies.none() | strategies.booleans() | strategies.integers() | strategies.text(max_size=5),
            lambda inner: (
                strategies.lists(inner, max_size=3)
                | strategies.dictionaries(
                    strategies.sampled_from(_KEYS),
                    inner,
                    max_size=5,
                )
            ),
            max_leaves=30,
        ),
        strategies.sampled_from([200, 201, 400]),
    )
    def test_any_body_gives_values_of_json(self, action: str, body: object, status: int) -> None:
        for read in (of(action, body), answer_particulars(action, status, json.dumps(body).encode())):
            json.dumps(read.fields, allow_nan=False).encode("utf-8")
            self.assertLess(len(json.dumps(read.fields)), 32_768)

    @given(strategies.sampled_from(["container_create", "plugin_set"]), strategies.binary())
    def test_any_bytes(self, action: str, body: bytes) -> None:
        request_particulars(action, body)
        answer_particulars(action, 201, body)
