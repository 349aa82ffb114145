"""The names of the commands, and where each one is defined."""

from __future__ import annotations

#: Command -> the module of accuquant.cli whose `command` it is, in the order of `accuquant --help`.
COMMANDS = {
    "demo": "demo",
    "calibrate": "calibrate",
    "export": "export",
    "check": "check",
    "audit": "audit",
    "build": "build",
    "sample": "sample",
    "verify": "verify",
    "bench": "bench",
    "push": "push",
    "doctor": "doctor",
}
