"""What the defender has learned of containers and exec commands, so that events can name them.

A request says `/containers/3f2a.../stop` or `/exec/9b1c.../start`; an auditor wants the name and image of the
container and the command. Both were in earlier requests and answers. What is kept is bounded by entries and
by bytes, the least recently used goes first, and what is not known is left out of the event.

It is a memory, not the Engine's truth: a container that was renamed, or removed and created anew, behind the
defender's back is shown as it was last seen. So only what is unmistakable is matched: a full id, a name that
was learned, or the beginning of an id that is at least as long as the one that docker prints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

#: Shortest beginning of an id that is taken for it, as `docker ps` prints it.
SHORT_ID: Final = 12

ENTRIES: Final = 10_000
BYTES: Final = 8 * 1024 * 1024

#: Roughly what an entry costs beside its texts: objects, and its places in the tables.
_OVERHEAD: Final = 600


@dataclass(frozen=True, slots=True)
class Container:
    """A container: full id, name without its slash, and image as it was asked for; "" what is not known.

    `field` is the `container` of an event's `req`, without what is not known; it is shared and not changed.
    """

    id: str
    name: str
    image: str
    field: Mapping[str, str]

    @property
    def size(self) -> int:
        """Bytes that it is counted as."""
        return _OVERHEAD + 2 * (len(self.id) + len(self.name) + len(self.image))


@dataclass(frozen=True, slots=True)
class Exec:
    """A command that was created in a container: `container` its full id or as it was named, `command` as it
    may be recorded, `user` who created it (of the defender's users).
    """

    id: str
    container: str
    command: str
    user: str

    @property
    def size(self) -> int:
        """Bytes that it is counted as."""
        return _OVERHEAD + len(self.id) + len(self.container) + len(self.command) + len(self.user)


class Objects:
    """The memory. `entries` bounds containers and commands each, `size` the bytes of both together."""

    def __init__(self, entries: int = ENTRIES, size: int = BYTES) -> None:
        self._entries = entries
        self._most = size
        self._size = 0
        # In the order of their last use, the oldest first.
        self._containers: dict[str, Container] = {}
        self._execs: dict[str, Exec] = {}
        self._names: dict[str, str] = {}
        self._short: dict[str, list[str]] = {}

    def __len__(self) -> int:
        return len(self._containers) + len(self._execs)

    @property
    def size(self) -> int:
        """Bytes that are counted."""
        return self._size

    # -- learning

    def learned_container(self, identity: str, name: str = "", image: str = "") -> Container | None:
        """A container exists: `identity` is its full id. What is "" is kept as it was known. None for an id
        that is none.
        """
        if len(identity) < SHORT_ID or len(identity) > 128:
            return None
        name = name.removeprefix("/")[:256]
        image = image[:512]
        known = self._containers.pop(identity, None)
        if known is not None:
            self._size -= known.size
            name = name or known.name
            image = image or known.image
            if known.name != name:
                self._names.pop(known.name, None)
        else:
            self._short.setdefault(identity[:SHORT_ID], []).append(identity)
        if name:
            before = self._names.get(name)
            if before is not None and before != identity:
                self._without_name(before)
            self._names[name] = identity
        entry = Container(identity, name, image, _field(identity, name, image))
        self._containers[identity] = entry
        self._size += entry.size
        self._make_room()
        return entry

    def learned_exec(self, exec_id: str, container: str, command: str, user: str = "") -> None:
        """A command was created in a container, which is named as the request named it."""
        if not exec_id or len(exec_id) > 128:
            return
        known = self.container(container)
        entry = Exec(exec_id, known.id if known is not None else container[:256], command, user[:256])
        before = self._execs.pop(exec_id, None)
        if before is not None:
            self._size -= before.size
        self._execs[exec_id] = entry
        self._size += entry.size
        self._make_room()

    def renamed(self, reference: str, name: str) -> None:
        """A container has another name from now on."""
        known = self.container(reference)
        if known is not None:
            self.learned_container(known.id, name)

    def forget_container(self, reference: str) -> None:
        """A container is gone, or the Engine knows none of this name or id."""
        known = self.container(reference)
        if known is not None:
            self._drop(known)

    def forget_exec(self, exec_id: str) -> None:
        """The Engine knows no such command."""
        entry = self._execs.pop(exec_id, None)
        if entry is not None:
            self._size -= entry.size

    # -- asking

    def container(self, reference: str) -> Container | None:
        """The container that a request names: by its id, its name, or the beginning of its id."""
        containers = self._containers
        identity = reference
        if identity not in containers:
            identity = self._names.get(reference) or self._names.get(reference.removeprefix("/"), "")
            if not identity:
                identity = self._by_beginning(reference)
                if not identity:
                    return None
        entry = containers.pop(identity)
        containers[identity] = entry
        return entry

    def exec(self, exec_id: str) -> Exec | None:
        """The command of an exec id."""
        entry = self._execs.pop(exec_id, None)
        if entry is not None:
            self._execs[exec_id] = entry
        return entry

    def container_of(
        self, action: str, target: str, fields: Mapping[str, object] | None = None
    ) -> Mapping[str, str] | None:
        """The `container` of an event: of a request with this canonical action and `target`, of whose body
        these particulars were taken. None where it has none, or none is known.
        """
        if action.startswith(("container_", "checkpoint_")):
            if action in _OF_AN_EXEC:
                entry = self.exec(target)
                target = entry.container if entry is not None else ""
        elif action in ("network_connect", "network_disconnect"):
            named = fields.get("container") if fields else None
            target = named if isinstance(named, str) else ""
        else:
            return None
        known = self.container(target) if target else None
        return known.field if known is not None else None

    # -- inside

    def _by_beginning(self, reference: str) -> str:
        if len(reference) < SHORT_ID:
            return ""
        same = self._short.get(reference[:SHORT_ID])
        if same is None:
            return ""
        found = same if len(reference) == SHORT_ID else [each for each in same if each.startswith(reference)]
        return found[0] if len(found) == 1 else ""

    def _without_name(self, identity: str) -> None:
        """Another container has its name now: names are unique, so it was renamed or is gone."""
        known = self._containers.get(identity)
        if known is not None:
            entry = Container(identity, "", known.image, _field(identity, "", known.image))
            self._containers[identity] = entry
            self._size += entry.size - known.size

    def _drop(self, entry: Container) -> None:
        del self._containers[entry.id]
        self._size -= entry.size
        if self._names.get(entry.name) == entry.id:
            del self._names[entry.name]
        beginning = entry.id[:SHORT_ID]
        same = self._short[beginning]
        same.remove(entry.id)
        if not same:
            del self._short[beginning]

    def _make_room(self) -> None:
        while len(self._containers) > self._entries or (
            self._size > self._most and len(self._containers) > max(1, len(self._execs))
        ):
            self._drop(next(iter(self._containers.values())))
        while len(self._execs) > self._entries or (self._size > self._most and len(self._execs) > 1):
            self.forget_exec(next(iter(self._execs)))


_OF_AN_EXEC: Final = frozenset(["container_exec_start", "container_exec_inspect", "container_exec_resize"])


def _field(identity: str, name: str, image: str) -> dict[str, str]:
    field = {"id": identity}
    if name:
        field["name"] = name
    if image:
        field["image"] = image
    return field
