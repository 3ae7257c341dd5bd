"""The two version numbers of pyfrp, importable without anything else."""

from __future__ import annotations

__version__ = "0.1.0"
"""Our own release, as `pyfrp --version` prints it."""

FRP_VERSION = "0.65.0"
"""The frp release whose behaviour we match; what `Login.version` and `LoginResp.version` carry."""
