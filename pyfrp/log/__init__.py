"""The log: structlog events as frp's lines (or JSON), on the console or in a file that rotates.

    log = get_logger()
    log = log.bind(run_id=run_id, proxy=name)     # once per connection
    log.info("proxy started", remote_port=6000)
    # 2026-11-22 16:02:02.850 [I] [server/tcp.py:71] [2b63356ecdf23fcf] [web] proxy started ...

`run_id` and `proxy` become `[..]` prefixes, other keys follow the text as `key=value`. Lines that
other programs look for are given as complete texts. Never log a secret.

A call below the level costs about 0.1 us: the methods of `Logger` themselves are exchanged when
the level is set. Nothing here raises into the program or stops it for long: what cannot be written
is counted, and the count is logged once writing works again.

Source of the format: frp `pkg/util/log/log.go`, golib `log` (layout, colours, rotation).
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, Literal

import structlog

from pyfrp.errors import ConfigError
from pyfrp.log.render import LEVELS, Renderer, clean, json_renderer, text_renderer
from pyfrp.log.sinks import Clock, Console, File

__all__ = ["Logger", "clean", "configure", "get_logger", "reopen", "set_level"]


class _Output:
    """What every logger writes to; `configure` exchanges its insides."""

    def __init__(self) -> None:
        self.clock: Clock = time.time
        self.render: Renderer = text_renderer(colour=False)
        self.sink: Console | File | None = None
        # Executor threads log, too, and rotation is more than one step. Reentrant, because the
        # garbage collector may run a finalizer that logs in the middle of a line.
        self.lock = threading.RLock()

    def emit(self, level: str, caller: str, event: Mapping[str, Any]) -> None:
        now = self.clock()
        with self.lock:
            try:
                text = self.render(now, level, caller, event)
            except Exception as exc:  # A value's own __str__ may do anything.
                text = self.render(now, level, caller, {"event": f"unprintable event: {exc!r}"})
            if self.sink is None:
                self.sink = Console(self.notice)
            self.sink.write(text, now)

    def notice(self, now: float, text: str) -> str:
        return self.render(now, "warn", "pyfrp/log.py", {"event": text})


_output = _Output()


# --- loggers -----------------------------------------------------------------------------------


def _caller(depth: int) -> str:
    """Return `dir/file.py:line` of the frame `depth` above the one that asks."""
    frame = sys._getframe(depth + 1)
    return f"{_short(frame.f_code.co_filename)}:{frame.f_lineno}"


_SHORT: dict[str, str] = {}


def _short(path: str) -> str:
    short = _SHORT.get(path)
    if short is None:
        short = _SHORT[path] = "/".join(path.replace("\\", "/").split("/")[-2:])
    return short


class Logger(structlog.BoundLoggerBase):
    """A structlog logger with frp's levels. Bind once per connection, not per call."""

    def _emit(self, level: str, event: str, keys: dict[str, Any]) -> None:
        args, _ = self._process_event(level, event, keys)
        _output.emit(level, _caller(2), args[0])

    def _drop(self, event: str, **keys: Any) -> None:
        """Stands in for the methods below the level."""

    def trace(self, event: str, **keys: Any) -> None:
        """Log what happens inside a protocol, frame by frame."""
        self._emit("trace", event, keys)

    def debug(self, event: str, **keys: Any) -> None:
        """Log what helps to find a fault, at most a few lines for each connection."""
        self._emit("debug", event, keys)

    def info(self, event: str, **keys: Any) -> None:
        """Log what an operator wants to see on a normal day."""
        self._emit("info", event, keys)

    def warning(self, event: str, **keys: Any) -> None:
        """Log what went wrong and is dealt with."""
        self._emit("warn", event, keys)

    def error(self, event: str, **keys: Any) -> None:
        """Log what went wrong and needs somebody."""
        self._emit("error", event, keys)

    def exception(self, event: str, **keys: Any) -> None:
        """Log a fault of our own, with the traceback of the exception being handled."""
        keys.setdefault("exc_info", True)
        self._emit("error", event, keys)

    warn = warning
    critical = error


_METHODS = {
    "trace": ("trace",),
    "debug": ("debug",),
    "info": ("info",),
    "warn": ("warning", "warn"),
    "error": ("error", "exception", "critical"),
}
_REAL = {name: getattr(Logger, name) for names in _METHODS.values() for name in names}


def _as_dict(_: Any, __: str, event: Any) -> tuple[tuple[Any], dict[str, Any]]:
    return (event,), {}


_PROCESSORS: list[Any] = [structlog.processors.format_exc_info, _as_dict]


def get_logger(**context: Any) -> Logger:
    """Return a logger, usable before and after `configure`.

    Args:
        context: What to bind at once, as `bind` does.
    """
    return Logger(_output, _PROCESSORS, context)


def set_level(level: str) -> None:
    """Set the level of every logger there is.

    Raises:
        ConfigError: It is none of `LEVELS`.
    """
    if level not in LEVELS:
        raise ConfigError(
            f"invalid log level, optional values are [{' '.join(LEVELS)}]", key="log.level"
        )
    for name, methods in _METHODS.items():
        on = LEVELS.index(name) >= LEVELS.index(level)
        for method in methods:
            setattr(Logger, method, _REAL[method] if on else Logger._drop)


class _FromLogging(logging.Handler):
    """Brings the warnings of asyncio and other libraries into our log."""

    def emit(self, record: logging.LogRecord) -> None:
        level = "error" if record.levelno >= logging.ERROR else "warn"
        event: dict[str, Any] = {"event": record.getMessage(), "logger": record.name}
        if record.exc_info and record.exc_info[0] is not None:
            event["exc_info"] = record.exc_info
            event = dict(structlog.processors.format_exc_info(None, level, event))
        _output.emit(level, f"{_short(record.pathname)}:{record.lineno}", event)


_from_logging = _FromLogging(logging.WARNING)


def configure(
    level: str = "info",
    to: str = "console",
    max_days: int = 3,
    disable_color: bool = False,
    fmt: Literal["text", "json"] = "text",
    *,
    clock: Clock = time.time,
) -> None:
    """Set up the log of the process; again whenever the configuration changes.

    Args:
        level: One of `LEVELS`.
        to: `console` for standard output, or the path of a file.
        max_days: Days that files renamed at midnight are kept; 0 or less keeps all.
        disable_color: No colour on the console. As in frp, colour is used otherwise even when
            standard output is no terminal.
        fmt: `text` for frp's lines, `json` for one object in each line.
        clock: Unix time.

    Raises:
        ConfigError: An unknown level, or a file that cannot be written. Nothing is changed then.
    """
    if level not in LEVELS:
        set_level(level)
    render = (
        json_renderer()
        if fmt == "json"
        else text_renderer(colour=to == "console" and not disable_color)
    )
    sink: Console | File
    if to == "console":
        sink = Console(_output.notice)
    else:
        sink = File(to, max_days, _output.notice, clock)
    with _output.lock:
        old, _output.sink = _output.sink, sink
        _output.render = render
        _output.clock = clock
    if old is not None:
        old.close()
    set_level(level)
    structlog.configure(
        processors=_PROCESSORS, wrapper_class=Logger, logger_factory=lambda *_: _output
    )
    root = logging.getLogger()
    if _from_logging not in root.handlers:
        root.addHandler(_from_logging)


def reopen() -> None:
    """Open the log file again: logrotate has moved it. For SIGUSR1 or SIGHUP."""
    with _output.lock:
        if _output.sink is not None:
            _output.sink.reopen()
