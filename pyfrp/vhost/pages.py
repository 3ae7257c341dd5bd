"""The page for hosts that nobody serves."""

from __future__ import annotations

from typing import Any


def custom_page(path: str, log: Any) -> bytes | None:
    """The operator's page (`custom404Page`), read anew each time so that it can be changed.

    Returns:
        None when there is none, or when it cannot be read, which is logged.
    """
    if not path:
        return None
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as exc:
        log.warning(f"custom 404 page [{path}] cannot be read: {exc.strerror}")
        return None
