"""How fields of an event are taken from a body: each kind of value in its own way, secrets never."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from defender.contract.command_line import redact_command, redact_text
from defender.contract.go_json import Object, clean
from defender.contract.redaction import HIDDEN, MAX_KEY, hide_password, hide_url, hide_user, shorten, words_of
from defender.contract.secret_shapes import hide_shapes, is_secret_name

#: Most entries of a list, and longest text of one.
MAX_LIST: Final = 16
MAX_ENTRY: Final = 128
#: Longest text of which a part is shown.
MAX_TEXT: Final = 4096

Fields = dict[str, object]


def _plain(value: str, limit: int) -> str:
    """A text that is no secret by its place, without what looks like one."""
    value = clean(value)
    if len(value) > MAX_TEXT:
        return f"{HIDDEN}({len(value)} characters)"
    value = hide_url(value) if "://" in value and not any(map(str.isspace, value)) else hide_user(value)
    return shorten(hide_shapes(value, HIDDEN), limit)


def entry_text(value: str) -> str:
    """A string as it is shown in a list."""
    return _plain(value, MAX_ENTRY)


class Taking:
    """Collects fields; what is empty is left out. All take the value of a body, of any type."""

    __slots__ = ("fields", "redacted")

    def __init__(self) -> None:
        self.fields: Fields = {}
        self.redacted: list[str] = []

    def hidden(self, name: str) -> None:
        """A field holds, or stands for, something that is not shown."""
        if name not in self.redacted:
            self.redacted.append(name)

    def put(self, name: str, value: object, shown: object) -> None:
        """`shown` is what may be recorded of `value`."""
        self.fields[name] = shown
        if shown != value and isinstance(shown, str) and HIDDEN in shown:
            self.hidden(name)

    def text(self, name: str, value: object) -> None:
        """A string."""
        if isinstance(value, str) and value:
            self.put(name, value, _plain(value, 2 * MAX_ENTRY))

    def flag(self, name: str, value: object) -> None:
        """A boolean, if it is true."""
        if value is True:
            self.fields[name] = True

    def number(self, name: str, value: object) -> None:
        """A whole number, if it is not 0."""
        if isinstance(value, int) and not isinstance(value, bool) and value:
            self.fields[name] = value

    def count(self, name: str, value: object) -> None:
        """How many entries a list or a map has."""
        if isinstance(value, list | Object) and len(value):
            self.fields[name] = len(value)

    def texts(self, name: str, values: list[str]) -> None:
        """A list, cut to `MAX_LIST` entries."""
        if not values:
            return
        shown = [entry_text(value) for value in values[:MAX_LIST]]
        if any(HIDDEN in entry for entry in shown):
            self.hidden(name)
        if len(values) > MAX_LIST:
            shown.append(f"... {len(values) - MAX_LIST} more")
        self.fields[name] = shown

    def strings(self, name: str, value: object) -> None:
        """A list of strings, or the one string that older Engines take for such a list."""
        self.texts(name, strings_of(value))

    def names(self, name: str, keys: list[str]) -> None:
        """Of something with secret values the keys; that they have values is said in `redacted`."""
        if keys:
            self.texts(name, keys)
            self.hidden(name)

    def withheld(self, name: str, value: object) -> None:
        """A secret: only that there is one."""
        if value is not None and value != "":
            self.fields[name] = HIDDEN
            self.hidden(name)

    def command(self, name: str, words: list[str]) -> None:
        """A command line, without its secrets."""
        if words:
            shown, hidden = redact_command([clean(word) for word in words])
            self.fields[name] = shown
            if hidden:
                self.hidden(name)

    def message(self, name: str, value: object) -> None:
        """A sentence that may repeat a secret it was given."""
        if isinstance(value, str) and value:
            shown, hidden = redact_text(clean(value))
            self.fields[name] = shown
            if hidden:
                self.hidden(name)

    def environment(self, value: object) -> None:
        """The names of variables. An entry without a value is hidden whole: it may be a value."""
        names = []
        for entry in strings_of(value):
            key, equals, _ = entry.partition("=")
            names.append(key[:MAX_KEY] if equals and key.isprintable() and " " not in key else HIDDEN)
        self.names("env", names)

    def labels(self, value: object) -> None:
        """How many there are, and of which project and service."""
        if not isinstance(value, Object) or not len(value):
            return
        self.fields["labels"] = len(value)
        self.hidden("labels")
        for key, label in value.items():
            name = _LABELS.get(key)
            if name is not None:
                self.text(name, label)

    def options(self, name: str, value: object) -> None:
        """Options of a driver: those of local volumes with their values, of others the names."""
        if isinstance(value, Object):
            self.texts(name, driver_options(value))


_LABELS: Final[Mapping[str, str]] = {
    "com.docker.compose.project": "project",
    "com.docker.compose.service": "service",
    "com.docker.stack.namespace": "project",
    "com.docker.swarm.service.name": "service",
}


def strings_of(value: object) -> list[str]:
    """The strings of a list; one string is a list of one."""
    if isinstance(value, str):
        return [value]
    return [entry for entry in value if isinstance(entry, str)] if isinstance(value, list) else []


def objects_of(value: object) -> list[Object]:
    """The objects of a list."""
    return [entry for entry in value if isinstance(entry, Object)] if isinstance(value, list) else []


def object_of(value: object) -> Object:
    """The object, or an empty one."""
    return value if isinstance(value, Object) else EMPTY


EMPTY: Final = Object([], [])

# -- drivers' options

_MOUNT_FLAGS: Final = words_of("""
    ro rw bind rbind nosuid suid nodev dev noexec exec sync async soft hard intr nolock lock tcp udp noatime
    relatime private shared rprivate rshared slave rslave guest noperm nobrl remount defaults
""")
_MOUNT_KEYS: Final = words_of("""
    addr vers nfsvers uid gid mode size file_mode dir_mode lowerdir upperdir workdir sec port proto timeo
    retrans rsize wsize iocharset ip nr_inodes
""")


def driver_options(options: Object) -> list[str]:
    """``NAME=VALUE`` for the four options of a local volume, ``NAME=***`` for any other."""
    shown = []
    for name, value in list(options.items())[: MAX_LIST + 1]:
        text = value if isinstance(value, str) else ""
        if name == "o":
            text = _mount_options(text)
        elif name == "device":
            text = hide_password(text)
        elif name not in ("type", "size"):
            text = HIDDEN
        shown.append(f"{name[:MAX_KEY]}={text}")
    return shown


def _mount_options(text: str) -> str:
    """The options of mount(8) that are known to hold no secret. A password may have a comma in it: behind one
    nothing is known any more.
    """
    shown = []
    for option in text[:MAX_TEXT].split(","):
        name, equals, _ = option.partition("=")
        if name in (_MOUNT_KEYS if equals else _MOUNT_FLAGS):
            shown.append(option)
        elif equals and name.isidentifier() and not is_secret_name(name) and len(name) <= 16:
            shown.append(f"{name}={HIDDEN}")
        else:
            shown.append(f"{name}={HIDDEN}" if is_secret_name(name) and len(name) <= 16 else HIDDEN)
            break
    return ",".join(shown)
