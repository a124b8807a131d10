"""Tells twistd of the command `defender`. It imports nothing of ours: any `twistd --help` loads it."""

from twisted.application.service import ServiceMaker

defender = ServiceMaker(
    "Defender",
    "defender.tap",
    "Guards this host's Docker Engine: who may run which command, and a record of it.",
    "defender",
)
