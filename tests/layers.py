"""Reads the syntax trees of both programs and says which import breaks the layering.

The layers, lowest first:

* ``defender.contract``: what both programs must agree on. Standard library, cryptography, automat; msgpack in
  ``codec``, ``fragments`` and ``packing``, yaml in ``document`` only. No Twisted, no file, clock or random
  source.
* pure modules: everything that is not a shell. The contract and each other; what they need to know of the
  world arrives as arguments. ``settings`` is the one that may also read its file.
* streams: ``defender.streams`` is the transport below every feature; any shell may use it.
* shells: their file names say so (`SHELL_NAMES`). A feature folder's shells are its own business: other
  folders do not import them, the program's ``service.py`` introduces them to each other.

And across: ``controller`` imports ``defender.contract`` and nothing else of ``defender``; ``defender`` never
imports ``controller``; only ``tap.py`` touches the global reactor, inside a function.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

MAX_LINES = 600


def words(text: str) -> frozenset[str]:
    """Return the set of the words of a text."""
    return frozenset(text.split())


SHELL_NAMES = words("""
    tap service protocol store journal tls frontend backend tunnel peer enrollment plain acceptor control
    descriptor poll openssl
    watch forwarding trail
    folder disk recording joining host member steering desk founding front publisher publisher_orders
    publisher_steps publisher_snapshots publisher_recall
    follower https peer_tls syslog_tls announcements chores
""")

CONTROLLER_SHELL_FOLDERS = words("cli pki store api console channel identity ports supervision")

CLOCKS_AND_FILES = words("""
    asyncio concurrent fcntl fileinput glob http.client io multiprocessing os random secrets select selectors
    shutil signal socket socketserver sqlite3 ssl subprocess tempfile threading time urllib.request
""")
"""Modules of the standard library that are a file, a clock, a random source or a process."""

IMPURE_CALLS = words("open input print exec eval breakpoint")
IMPURE_ATTRIBUTES = words("""
    datetime.now datetime.utcnow datetime.today date.today uuid.uuid1 uuid.uuid4 uuid.getnode
""")
IMPURE_NAMES = words("pathlib.PosixPath uuid.uuid1 uuid.uuid4 uuid.getnode")
PATH_READS = words("""
    absolute chmod cwd exists expanduser glob home is_dir is_file is_socket is_symlink iterdir lchmod lstat
    mkdir open read_bytes read_text readlink rename resolve rglob rmdir samefile stat symlink_to touch unlink
    write_bytes write_text
""")
"""What a pure module that has a path as a value does not ask it: these go to the disk."""

GLOBAL_REACTOR = frozenset(
    {
        "twisted.internet.reactor",
        # These reach for the global reactor by themselves.
        "twisted.internet.threads.deferToThread",
        "twisted.internet.threads.callMultipleInThread",
    }
)

PURE_LIBRARIES = frozenset({"automat", "cryptography"})
CONTRACT_ONLY_IN = {
    "msgpack": words("defender.contract.codec defender.contract.fragments defender.contract.packing"),
    "yaml": words("defender.contract.document"),
}


@dataclass(frozen=True, slots=True)
class Import:
    """One imported name: ``from a import b`` gives ``a.b``."""

    name: str
    line: int
    in_function: bool


@dataclass(frozen=True, slots=True)
class Source:
    """One module: its dotted name, and its tree."""

    module: str
    tree: ast.Module

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(self.module.split("."))

    @property
    def basename(self) -> str:
        return self.parts[-1]

    @property
    def is_contract(self) -> bool:
        return is_under(self.module, "defender.contract")

    @property
    def is_shell(self) -> bool:
        return is_shell(self.module)


def parse(module: str, text: str) -> Source:
    """Make a `Source` of text, as if it lay in the file of ``module``."""
    return Source(module, ast.parse(text))


def is_under(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def is_shell(module: str) -> bool:
    """Tell whether a module may speak with the world."""
    if is_under(module, "defender.contract"):
        return False
    parts = module.split(".")
    if parts[0] == "controller" and len(parts) > 2 and parts[1] in CONTROLLER_SHELL_FOLDERS:
        return True
    return parts[-1] in SHELL_NAMES


def folder_of(module: str) -> str:
    """Return the feature folder of a module: ``defender.proxy.backend`` is of ``defender.proxy``."""
    return ".".join(module.split(".")[:2])


def imports(source: Source) -> Iterator[Import]:
    """Yield every import of a module, relative ones made absolute."""

    def visit(node: ast.AST, in_function: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(alias.name, child.lineno, in_function)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    parent = ".".join(source.parts[: -child.level])
                    base = f"{parent}.{base}" if base else parent
                for alias in child.names:
                    yield Import(f"{base}.{alias.name}", child.lineno, in_function)
            inner = in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from visit(child, inner)

    yield from visit(source.tree, False)


def dotted(node: ast.AST) -> str:
    """Return ``a.b.c`` for an attribute chain, or ``""`` for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""


class Layers:
    """The rules over one set of modules; `violations` checks one of them.

    Args:
        modules: every dotted module name that exists, so that ``from a.b import c`` is told to be the module
            ``a.b.c`` or a name inside ``a.b``.
    """

    def __init__(self, modules: frozenset[str]) -> None:
        self.modules = modules

    def target(self, name: str) -> str:
        """Return the module that an imported name comes from."""
        if name in self.modules:
            return name
        return name.rpartition(".")[0] or name

    def violations(self, source: Source) -> list[str]:
        """Return one line for each broken rule, ``module:line: what``."""
        found: list[tuple[int, str]] = []
        pure = not source.is_shell and source.basename != "settings"
        for item in imports(source):
            found.extend((item.line, text) for text in self._import(source, item, pure))
        if pure and source.parts[0] in {"defender", "controller"}:
            has_paths = any(item.name == "pathlib.Path" for item in imports(source))
            found.extend(self._impure_uses(source.tree, has_paths))
        found.extend(self._reactor_uses(source.tree))
        return [f"{source.module}:{line}: {text}" for line, text in sorted(found)]

    def _import(self, source: Source, item: Import, pure: bool) -> Iterator[str]:
        name = item.name
        top = name.split(".")[0]
        program = source.parts[0]
        if any(is_under(name, banned) for banned in GLOBAL_REACTOR) and not (
            source.basename == "tap" and item.in_function
        ):
            yield f"touches the global reactor ({name}); only tap.py does, inside a function"
        if program == "defender" and top == "controller":
            yield f"defender never imports controller ({name})"
        if program == "controller" and top == "defender" and not is_under(name, "defender.contract"):
            yield f"of defender, controller imports defender.contract only ({name})"
        if top in {"defender", "controller"}:
            yield from self._own(source, self.target(name), pure)
        else:
            yield from self._foreign(source, name, top, pure)

    def _own(self, source: Source, target: str, pure: bool) -> Iterator[str]:
        if source.is_contract and not is_under(target, "defender.contract"):
            yield f"the contract imports nothing outside it ({target})"
        elif not source.is_shell and is_shell(target):
            yield f"a pure module imports no shell ({target})"
        elif pure and target.split(".")[-1] == "settings":
            yield f"a pure module takes its settings as arguments ({target})"
        elif (
            len(source.parts) > 2
            and is_shell(target)
            and target.split(".")[0] == "defender"
            and folder_of(target) not in {folder_of(source.module), "defender.streams"}
        ):
            yield f"a feature folder does not import another's shell ({target}); service.py introduces them"

    def _foreign(self, source: Source, name: str, top: str, pure: bool) -> Iterator[str]:
        if source.is_shell:
            return
        if top not in sys.stdlib_module_names:
            allowed = top in PURE_LIBRARIES or source.module in CONTRACT_ONLY_IN.get(top, ())
            if not allowed:
                yield f"a pure module does not import {top} ({name})"
        elif source.is_contract and name == "pathlib.Path":
            yield "the contract's paths are PurePosixPath: both programs' hosts are meant, not this one"
        elif pure and (any(is_under(name, banned) for banned in CLOCKS_AND_FILES) or name in IMPURE_NAMES):
            yield f"a pure module has no file, clock or random source ({name})"

    @staticmethod
    def _impure_uses(tree: ast.Module, has_paths: bool) -> Iterator[tuple[int, str]]:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and dotted(node.func) in IMPURE_CALLS:
                yield node.lineno, f"a pure module does not call {dotted(node.func)}()"
            elif isinstance(node, ast.Attribute):
                if has_paths and node.attr in PATH_READS:
                    yield node.lineno, f"a pure module reads no file (.{node.attr})"
                name = dotted(node)
                if any(name == banned or name.endswith("." + banned) for banned in IMPURE_ATTRIBUTES):
                    yield node.lineno, f"a pure module has no clock or random source ({name})"

    @staticmethod
    def _reactor_uses(tree: ast.Module) -> Iterator[tuple[int, str]]:
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and dotted(node) in GLOBAL_REACTOR:
                yield node.lineno, f"touches the global reactor ({dotted(node)})"


def module_name(path: Path) -> str:
    """Return the dotted name of a file below `ROOT`."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


def python_files(*folders: str) -> list[Path]:
    """Return every Python file below the named folders of the checkout, sorted."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
