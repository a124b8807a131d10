"""A directory of wheels, made without a network: this project's own, and its libraries as installed here."""

from __future__ import annotations

import base64
import hashlib
import re
import sys
import zipfile
from configparser import ConfigParser
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

from tests.system.checkout import ROOT, bare_environment, copy_checkout, run


def libraries() -> dict[str, Distribution]:
    """The distributions that the project needs, without extras and other systems' markers."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    found: dict[str, Distribution] = {}
    waiting = [Requirement(line).name for line in setup["options"]["install_requires"].split()]
    while waiting:
        each = waiting.pop()
        key = each.lower().replace("_", "-")
        if key in found:
            continue
        found[key] = distribution(each)
        for requirement in found[key].requires or ():
            wanted = Requirement(requirement)
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                waiting.append(wanted.name)
    return found


def repack(found: Distribution, folder: Path) -> Path:
    """Make the wheel that a distribution was installed from, as far as its own record tells."""
    about = found.read_text("WHEEL") or ""
    tags = re.findall(r"(?m)^Tag: (\S+)$", about)
    tagged = "-".join(
        ".".join(dict.fromkeys(parts)) for parts in zip(*(tag.split("-") for tag in tags), strict=True)
    )
    name = re.sub(r"[-_.]+", "_", found.metadata["Name"])
    wheel = folder / f"{name}-{found.version}-{tagged}.whl"
    record, record_name = [], ""
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in found.files or ():
            if ".." in file.parts or "__pycache__" in file.parts or file.name in ("INSTALLER", "REQUESTED"):
                continue  # scripts are made anew from the entry points
            if file.name == "RECORD" and file.parent.suffix == ".dist-info":
                record_name = str(file)
                continue
            data = Path(str(file.locate())).read_bytes()
            archive.writestr(str(file), data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append(f"{file},sha256={digest},{len(data)}\n")
        archive.writestr(record_name, "".join(record) + f"{record_name},,\n")
    return wheel


def build_wheelhouse(folder: Path) -> Path:
    """Fill an empty directory with all wheels that the program needs; return the program's."""
    checkout = copy_checkout(folder.with_name(folder.name + "-checkout"))
    arguments = ("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index")
    run(
        sys.executable,
        *arguments,
        f"--wheel-dir={folder}",
        str(checkout),
        cwd=checkout,
        environment=bare_environment(),
    )
    for each in libraries().values():
        repack(each, folder)
    [program] = folder.glob("defender_fleet-*.whl")
    return program
