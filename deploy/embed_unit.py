"""Copy the defender's unit into the installer, which is one file: `python3 -m deploy.embed_unit`.

The unit stays with the version of the program that it was written for, so that going back to a version goes
back to its unit too.
"""

from __future__ import annotations

from deploy.choices import ROOT

UNIT = ROOT / "deploy" / "systemd" / "defender.service"
INSTALLER = ROOT / "deploy" / "install" / "defender.sh"
BEGIN = "defender_service() {\n    cat <<'UNIT'\n"
END = "UNIT\n}\n"


def embedded(script: str, unit: str) -> str:
    """Return the script with this unit in it."""
    before, _, rest = script.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + unit + END + after


if __name__ == "__main__":
    INSTALLER.write_text(embedded(INSTALLER.read_text("utf-8"), UNIT.read_text("utf-8")), "utf-8")
