"""The import rules hold for every module, and each rule catches what it is there for."""

from __future__ import annotations

import sys

from twisted.trial.unittest import SynchronousTestCase

from tests.layers import MAX_LINES, ROOT, Layers, imports, module_name, parse, python_files

PROGRAMS = ("defender", "controller")


class TheCheckoutTests(SynchronousTestCase):
    """The rules, held against the files as they are."""

    def test_every_import_keeps_its_layer(self) -> None:
        files = python_files(*PROGRAMS)
        layers = Layers(frozenset(map(module_name, files)))
        broken = [
            line
            for path in files
            for line in layers.violations(parse(module_name(path), path.read_text("utf-8")))
        ]
        self.assertEqual(broken, [])

    def test_nothing_makes_a_package_of_twisted(self) -> None:
        """An __init__.py there hides all of Twisted."""
        for folder in ("twisted", "twisted/plugins"):
            self.assertFalse((ROOT / folder / "__init__.py").exists(), folder)

    def test_plugin_files_import_nothing_of_ours(self) -> None:
        """Each twistd on the machine imports every plugin file, for its --help."""
        files = python_files("twisted")
        self.assertEqual([path.name for path in files], ["controller_plugin.py", "defender_plugin.py"])
        for path in files:
            names = [item.name for item in imports(parse(module_name(path), path.read_text("utf-8")))]
            self.assertEqual(names, ["twisted.application.service.ServiceMaker"], path.name)

    def test_every_folder_with_modules_is_a_package(self) -> None:
        folders = {path.parent for path in python_files(*PROGRAMS, "tests")}
        self.assertEqual(
            [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").is_file()], []
        )

    def test_no_file_has_two_purposes(self) -> None:
        long = [
            f"{path.relative_to(ROOT)}: {count} lines"
            for path in python_files(*PROGRAMS, "tests", "deploy", "twisted")
            if (count := len(path.read_text("utf-8").splitlines())) > MAX_LINES
        ]
        self.assertEqual(long, [])

    def test_start_up_scripts_need_no_library(self) -> None:
        """deploy/ runs before there is a virtual environment."""
        files = python_files("deploy")
        own = {path.stem for path in files} | {"deploy"}
        for path in files:
            for item in imports(parse(module_name(path), path.read_text("utf-8"))):
                top = item.name.split(".")[0]
                self.assertTrue(
                    top in sys.stdlib_module_names or top in own, f"{path.name}:{item.line}: {item.name}"
                )


class TheRulesTests(SynchronousTestCase):
    """Each rule, on a module that breaks it and on its lawful twin."""

    layers = Layers(
        frozenset(
            {
                "controller.cli.main",
                "controller.fleet",
                "controller.store.hosts",
                "defender.audit.journal",
                "defender.contract",
                "defender.contract.audit",
                "defender.contract.codec",
                "defender.contract.document",
                "defender.contract.policy",
                "defender.http1.head",
                "defender.listener.service",
                "defender.proxy.backend",
                "defender.proxy.exchange",
                "defender.proxy.frontend",
                "defender.service",
                "defender.settings",
                "defender.streams.interface",
                "defender.streams.plain",
                "defender.tap",
            }
        )
    )

    def broken(self, module: str, text: str) -> int:
        return len(self.layers.violations(parse(module, text)))

    def assert_broken(self, module: str, text: str) -> None:
        self.assertGreaterEqual(self.broken(module, text), 1, f"{module}: {text}")

    def assert_kept(self, module: str, text: str) -> None:
        self.assertEqual(self.layers.violations(parse(module, text)), [], f"{module}: {text}")

    def test_the_contract_imports_little(self) -> None:
        for text in (
            "from twisted.internet import defer",
            "import yaml",
            "import msgpack",
            "import attrs",
            "from defender.http1 import head",
            "from ..http1.head import parse_request_head",
            "import time",
            "from random import choice",
            "import os.path",
            "from pathlib import Path",
            "def f():\n    import secrets",
            "import datetime\ndatetime.datetime.now()",
            "from uuid import uuid4",
            "def f(path):\n    return open(path).read()",
        ):
            self.assert_broken("defender.contract.policy", text)
        for text in (
            "import re, json, hashlib, posixpath, datetime, uuid\nuuid.uuid5(uuid.NAMESPACE_URL, 'x')",
            "from cryptography import x509",
            "from automat import TypeMachineBuilder",
            "from . import audit",
            "from defender.contract.audit import Recorder",
            "from pathlib import PurePosixPath",
        ):
            self.assert_kept("defender.contract.policy", text)

    def test_yaml_and_msgpack_have_one_reader_each(self) -> None:
        self.assert_kept("defender.contract.document", "import yaml")
        self.assert_kept("defender.contract.codec", "from msgpack import Unpacker")
        self.assert_broken("defender.contract.codec", "import yaml")

    def test_pure_modules_know_no_shell(self) -> None:
        module = "defender.proxy.exchange"
        self.assert_broken(module, "from defender.proxy.backend import Backend")
        self.assert_broken(module, "from defender.streams.plain import PlainStream")
        self.assert_broken(module, "from twisted.python import log")
        self.assert_broken(module, "import time")
        self.assert_broken(module, "from defender.settings import Settings")
        self.assert_broken("controller.fleet", "from controller.store import hosts")
        self.assert_kept(module, "from defender.http1.head import RequestHead")
        self.assert_kept(module, "from defender.streams.interface import Stream")
        self.assert_kept(module, "from defender.contract import policy")

    def test_settings_read_their_file_and_no_more(self) -> None:
        self.assert_kept("defender.settings", "import os, tomllib\nopen('x')")
        self.assert_broken("defender.settings", "from twisted.python import filepath")
        self.assert_broken("defender.settings", "from defender.service import make_service")

    def test_a_path_may_be_a_value(self) -> None:
        self.assert_kept("defender.http1.head", "from pathlib import Path\ndef f(p: Path): return p.name")
        self.assert_broken(
            "defender.http1.head", "from pathlib import Path\ndef f(p: Path): return p.read_text()"
        )

    def test_shells_keep_to_their_folder(self) -> None:
        self.assert_broken("defender.proxy.frontend", "from defender.audit.journal import Journal")
        self.assert_broken("defender.proxy.frontend", "from defender.listener import service")
        self.assert_kept("defender.proxy.frontend", "from defender.proxy.backend import Backend")
        self.assert_kept("defender.proxy.frontend", "from defender.streams.plain import PlainStream")
        self.assert_kept(
            "defender.proxy.frontend", "from twisted.internet.defer import Deferred\nimport time"
        )
        self.assert_kept("defender.service", "from defender.listener.service import ListenerService")

    def test_the_programs_keep_apart(self) -> None:
        self.assert_broken("defender.service", "from controller.fleet import Fleet")
        self.assert_broken("defender.service", "import controller")
        self.assert_broken("controller.cli.main", "from defender.http1 import head")
        self.assert_broken("controller.cli.main", "import defender")
        self.assert_kept("controller.cli.main", "from defender.contract import policy")
        self.assert_kept("controller.cli.main", "import defender.contract.policy, click, os")

    def test_the_reactor_is_an_argument(self) -> None:
        self.assert_broken("defender.service", "from twisted.internet import reactor")
        self.assert_broken("defender.service", "def f():\n    from twisted.internet import reactor")
        self.assert_broken("defender.service", "import twisted.internet.reactor")
        self.assert_broken("defender.service", "import twisted.internet\ntwisted.internet.reactor.run()")
        self.assert_broken("defender.service", "from twisted.internet.threads import deferToThread")
        self.assert_broken("defender.tap", "from twisted.internet import reactor")
        self.assert_kept("defender.tap", "def f():\n    from twisted.internet import reactor")

    def test_imports_are_found_wherever_they_stand(self) -> None:
        text = "class A:\n    def f(self):\n        try:\n            import x.y\n        finally: pass"
        self.assertEqual(
            [(item.name, item.in_function) for item in imports(parse("m", text))], [("x.y", True)]
        )
