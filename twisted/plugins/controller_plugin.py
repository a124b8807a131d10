"""Tells twistd of the command `controller`. It imports nothing of ours: any `twistd --help` loads it."""

from twisted.application.service import ServiceMaker

controller = ServiceMaker(
    "Defender Fleet controller",
    "controller.tap",
    "Steers a fleet of defenders: policies, identities, audit.",
    "controller",
)
