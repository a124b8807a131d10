"""The controller's composition root: not written yet, and it says so rather than start half of one."""

from __future__ import annotations

NOT_YET = "the controller is not there yet; a single defender needs none: run `make up MODE=standalone`"
"""The one sentence that every way of starting a controller answers with until there is one."""
