"""Reads the captures."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("frp-0.65.0.json")


@cache
def vectors() -> dict[str, dict[str, Any]]:
    """All vectors by name."""
    entries = json.loads(FILE.read_text())["vectors"]
    return {entry["name"]: entry for entry in entries}
