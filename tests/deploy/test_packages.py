"""What this host lacks is named, and installed only where that is possible."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from deploy import packages
from deploy.choices import SetupError

ABSENT = {"no-such-program": "its-package", "/no/such/header.h": "its-headers", "sh": "dash"}


class PackagesTests(SynchronousTestCase):
    """Nothing is installed here."""

    def test_missing(self) -> None:
        self.assertEqual(
            packages.missing(ABSENT), {"no-such-program": "its-package", "/no/such/header.h": "its-headers"}
        )

    def test_which_systems_have_apt(self) -> None:
        self.patch(shutil, "which", lambda name, path: f"/usr/bin/{name}")
        for text, expected in (
            ("ID=debian\n", True),
            ('ID=linuxmint\nID_LIKE="ubuntu debian"\n', True),
            ("ID=fedora\n", False),
            ("", False),
        ):
            handle, name = tempfile.mkstemp()
            self.addCleanup(os.unlink, name)
            os.write(handle, text.encode())
            os.close(handle)
            self.assertEqual(packages.is_debian_like(Path(name)), expected, text)
        self.assertFalse(packages.is_debian_like(Path("/no/such/file")))

    def test_what_cannot_be_installed_is_named(self) -> None:
        self.patch(packages, "may_install", lambda: False)
        said = str(self.assertRaises(SetupError, packages.require, ABSENT, "make test"))
        for part in ("make test needs", "no-such-program", "its-package", "its-headers"):
            self.assertIn(part, said)

    def test_what_a_package_did_not_bring_is_named(self) -> None:
        self.patch(packages, "may_install", lambda: True)
        asked: list[list[str]] = []
        self.patch(packages, "install", asked.append)
        said = str(self.assertRaises(SetupError, packages.require, ABSENT, "make test"))
        self.assertEqual(asked, [["its-headers", "its-package"]])
        self.assertIn("no package brought it", said)
        packages.require({"sh": "dash"}, "nothing")
        self.assertEqual(len(asked), 1)
