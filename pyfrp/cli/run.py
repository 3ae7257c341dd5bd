"""Run a server or a client until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pyfrp import log as logging
from pyfrp.errors import ConfigError
from pyfrp.net.descriptors import DescriptorWatch
from pyfrp.net.moderation import WakeupModeration
from pyfrp.net.runner import Notifier, Signals, run
from pyfrp.net.scope import Scope
from pyfrp.wire.cfb import load_cipher

if TYPE_CHECKING:
    from pyfrp.config import ClientConfig, ServerConfig
    from pyfrp.config.common import LogConfig
    from pyfrp.server.bind import Bound

# Not in the way of the first login: a look at all that was loaded takes longer than that.
_SETTLED_S = 1.0

STOPPED = 0
FAILED = 1


def run_server(cfg: ServerConfig, bound: Bound | None, *, config_path: str | None) -> int:
    """Serve until SIGTERM; returns the exit code. `bound` are ports that are bound already."""
    return _run(cfg.log, _server(cfg, bound, config_path))


def run_client(cfg: ClientConfig, *, config_path: str | None) -> int:
    """Stay connected until SIGTERM; returns the exit code."""
    return _run(cfg.log, _client(cfg, config_path))


def _run(log: LogConfig, main: object) -> int:
    logging.configure(
        log.level,
        log.to,
        log.max_days,
        log.disable_print_color,
        "json" if log.format == "json" else "text",
    )
    _raise_file_limit()
    try:
        return run(main)  # type: ignore[arg-type]  # one of the two coroutines above
    except ConfigError as exc:
        print(exc, file=sys.stdout, flush=True)
        return FAILED
    except (asyncio.CancelledError, KeyboardInterrupt):
        return FAILED  # A second signal asked for the end at once.


async def _server(cfg: ServerConfig, bound: Bound | None, config_path: str | None) -> int:
    from pyfrp.server.service import Server

    log = logging.get_logger()
    if config_path:
        log.info(f"frps uses config file: {config_path}")
    else:
        log.info("frps uses command line arguments for config")
    for warning in cfg.warnings:
        log.warning(warning)
    signals = Signals(logging.reopen)
    if not await _resolve(cfg, signals.stop):
        return STOPPED
    notifier = Notifier()
    server = Server(cfg, bound)
    await server.start()
    notifier.ready()
    load_cipher()
    _freeze()
    try:
        with _descriptors_watched():
            await signals.stop.wait()
        log.info("frps is stopping, open connections may finish", seconds=cfg.shutdown_timeout)
        notifier.stopping(float(cfg.shutdown_timeout))
        await server.stop(float(cfg.shutdown_timeout))
        log.info("frps stopped")
    finally:
        notifier.close()
    return STOPPED


async def _client(cfg: ClientConfig, config_path: str | None) -> int:
    from pyfrp.client.service import Client, LoginFailed

    log = logging.get_logger()
    if config_path:
        log.info(f"start frpc service for config file [{config_path}]")
    for warning in cfg.warnings:
        log.warning(warning)
    use_dns_server(cfg)
    signals = Signals(logging.reopen)
    if not await _resolve(cfg, signals.stop):
        return STOPPED
    notifier = Notifier()
    client = Client(cfg, on_login=notifier.ready, on_wait=notifier.extend)

    async def stop() -> None:
        await signals.stop.wait()
        log.info("frpc is stopping, open connections may finish", seconds=cfg.shutdown_timeout)
        notifier.stopping(float(cfg.shutdown_timeout))
        await client.stop(float(cfg.shutdown_timeout))

    scope = Scope(client.report)
    scope.spawn(stop(), name="stop")
    asyncio.get_running_loop().call_later(_SETTLED_S, _freeze)
    # Only here: a client has its service beside it, a server has the network.
    moderation = WakeupModeration()
    try:
        with _descriptors_watched():
            await client.run()
    except LoginFailed as exc:
        print(
            f"login to the server failed: {logging.clean(str(exc), 4000)}. "
            "With loginFailExit enabled, no additional retries will be attempted",
            flush=True,
        )
        return FAILED
    finally:
        if config_path:
            log.info(f"frpc service for config file [{config_path}] stopped")
        moderation.close()
        await scope.close()
        notifier.close()
    return STOPPED


def use_dns_server(cfg: ClientConfig) -> None:
    """Have the names of this process looked up where the configuration says."""
    if not cfg.dns_server:
        return
    from pyfrp.config.outward import parse_dns_server  # few clients have one
    from pyfrp.net.dial import look_up_with
    from pyfrp.net.dnsserver import DnsServer

    look_up_with(DnsServer(*parse_dns_server(cfg.dns_server)).lookup)


async def _resolve(cfg: ServerConfig | ClientConfig, stop: asyncio.Event) -> bool:
    """Get the token that a program prints, where the file names one.

    Returns:
        False when told to stop before it came; the program is ended then.
    """
    if cfg.auth.token_source is None:
        return True
    from pyfrp.auth.sources import resolve_token  # few files have it: not at start-up

    loop = asyncio.get_running_loop()
    resolving = loop.create_task(resolve_token(cfg.auth), name="token")
    tasks = (resolving, loop.create_task(stop.wait(), name="stop"))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    if resolving.cancelled():
        return False
    resolving.result()
    return True


def _raise_file_limit() -> None:
    """Every connection is a descriptor; take what the system allows."""
    try:
        import resource
    except ImportError:
        return  # Windows has no such limit.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            pass  # macOS names a hard limit that it does not grant; the soft one stays.


@contextmanager
def _descriptors_watched() -> Iterator[None]:
    """Have it said when there are no more of them."""
    try:
        import resource
    except ImportError:
        yield
        return

    def limit() -> int:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return sys.maxsize if soft == resource.RLIM_INFINITY else soft

    log = logging.get_logger()
    watch = DescriptorWatch(limit, warn=log.warning, inform=log.info)
    try:
        yield
    finally:
        watch.close()


def _freeze() -> None:
    """Keep the collector away from what was loaded at start: it lives as long as the process."""
    gc.collect()
    gc.freeze()
    gc.enable()
