"""The entry point: which command, which file, and how an end is told.

What the programs print (errors, warnings) goes to standard output, as with frp; usage errors go
to standard error. Exit codes: 0, 1 for whatever went wrong, 130 after an interrupt. Nothing heavy
is imported before it is needed.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from pyfrp.cli.flags import FlagParser, UsageError
from pyfrp.errors import ConfigError, PyfrpError
from pyfrp.version import __version__

if TYPE_CHECKING:
    import argparse

    from pyfrp.cli.oneline import OneLine
    from pyfrp.config import ClientConfig, ServerConfig
    from pyfrp.config.base import Model

OK = 0
FAILED = 1
INTERRUPTED = 130

CLIENT_FILE = "./frpc.toml"
"""The client's file when none is named."""

_OVERVIEW = f"""\
pyfrp {__version__}: reach a service behind NAT through a server with a public address.
Wire compatible with frp: either side may be frp's own program.

Usage:
  pyfrp server -c frps.toml          run the server (frps)
  pyfrp client -c frpc.toml          run the client (frpc)
  pyfrp client TYPE [flags]          offer one service without a file, e.g. TYPE = tcp
  pyfrp verify -c FILE               check a file of either, run nothing
  pyfrp demo                         see it work on this machine, no network needed
  pyfrp schema server|client         print the JSON Schema of a file, for editors
  pyfrp COMMAND --help               all flags of a command

Flags:
  -h, --help                         show this help
  -v, --version                      print the version
"""

_CLIENT_EXAMPLES = """\
  pyfrp client -c frpc.toml                        run with a file
  pyfrp client verify -c frpc.toml                 check the file, run nothing
  pyfrp client nathole discover                    tell what kind of NAT this machine is behind

Without a file, for one proxy or one visitor (each with --help):
  pyfrp client tcp|udp|http|https|tcpmux|stcp|sudp|xtcp [flags]
  pyfrp client stcp|sudp|xtcp visitor [flags]
"""

_VERIFY_EXAMPLES = """\
  pyfrp verify -c frps.toml                        tell by its keys whose file it is
  pyfrp verify client -c office.toml               check it as the client's
"""

# What frp has and this release has not, and what to do instead.
_LATER = {
    "completion": "see --help for the flags",
    "reload": "restart the client",
    "status": "look into its log",
    "stop": "send SIGTERM to the process, or use `systemctl stop`",
    "--config-dir": "start one client for each file",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    The garbage collector rests meanwhile, until a program runs: loading makes many objects and no
    garbage.

    Args:
        argv: The arguments; those of the process when not given.

    Returns:
        The exit code.
    """
    _open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        # A path or key that the terminal's encoding cannot show must not become a traceback.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    gc.disable()
    try:
        code = _dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except UsageError as error:
        print(f"Error: {error}\n{error.usage}", file=sys.stderr, end="")
        return FAILED
    except PyfrpError as error:
        print(error, flush=True)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output is gone; do not let the interpreter's last flush complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if os.environ.get("PYFRP_TRACEBACK"):
            raise
        _print_bug(error)
        return FAILED
    finally:
        gc.enable()


def _open_standard_streams() -> None:
    """Put the null device where the process was started with a standard stream closed.

    Else a socket would get its number: what other programs and libraries write to standard error
    would go to a peer, and libuv ends the process when that socket is closed (`uv__close`).
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # By their numbers.
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  # as long as the process


def _print_bug(error: Exception) -> None:
    """Tell of a fault of our own in one line; the last frame is enough to find it."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    where = ""
    if frame is not None:
        file = os.path.basename(frame.tb_frame.f_code.co_filename)
        where = f" at {file}:{frame.tb_lineno}"
    print(
        f"pyfrp: internal error{where}: {type(error).__name__}: {error} "
        "(set PYFRP_TRACEBACK=1 for details, and please report it)",
        flush=True,
    )


def _dispatch(argv: list[str]) -> int:
    command, rest = (argv[0], argv[1:]) if argv else ("", [])
    if command == "help":
        command, rest = (rest[0], [*rest[1:], "--help"]) if rest else ("--help", [])
    elif rest[:1] == ["help"]:
        rest = [*rest[1:], "--help"]
    match command:
        case "server" | "frps":
            return _server(rest)
        case "client" | "frpc":
            return _client(rest)
        case "verify":
            return _verify(rest)
        case "schema":
            return _schema(rest)
        case "demo":
            from pyfrp.cli.demo import run_demo

            return run_demo(rest)
        case "-v" | "--version":
            print(__version__)
            return OK
        case "-h" | "--help":
            print(_OVERVIEW, end="")
            return OK
        case "":
            print(_OVERVIEW, end="", file=sys.stderr)
            return FAILED
    what = "flag" if command.startswith("-") else "command"
    hint = ""
    if {"-c", "--config"} & set(argv):
        hint = "; write `pyfrp server -c FILE` or `pyfrp client -c FILE`"
    raise UsageError(f"unknown {what}: {command}{hint}", _OVERVIEW)


def _refuse_later(role: str, argv: list[str]) -> None:
    """Say clearly what a later release will do, rather than "unknown command"."""
    for index, word in enumerate(argv):
        name = word.partition("=")[0]
        if name.startswith("--"):
            name = name.replace("_", "-")
        if name in _LATER and (index == 0 or name.startswith("--")):
            raise ConfigError(
                f"`pyfrp {role} {name}` is not available in this release of pyfrp: {_LATER[name]}"
            )


def _server(argv: list[str]) -> int:
    from pyfrp.cli import server

    _refuse_later("server", argv)
    parser = server.parser()
    flags, words = parser.read(argv)
    done = _common(parser, flags)
    if done is not None:
        return done
    if _wants_verify(parser, "server", flags, words):
        if not flags.config:
            # As frps: nothing to verify is not an error.
            print("frps: the configuration file is not specified")
            return OK
        return _check("server", flags.config, flags)

    from pyfrp.config import check_supported

    if flags.config:
        cfg = _load_server(flags.config, flags)
        cfg.warnings.extend(
            f"{name} has no effect together with -c" for name in server.ignored(flags)
        )
    else:
        cfg = server.config_of(flags)
    check_supported(cfg)
    from pyfrp.server.bind import bind_early

    # Whoever connects while the rest is loaded waits in the kernel's queue.
    bound = bind_early(cfg)
    from pyfrp.cli.run import run_server

    return run_server(cfg, bound, config_path=flags.config)


def _client(argv: list[str]) -> int:
    from pyfrp.cli.server import add_common

    if argv[:1] == ["nathole"]:
        from pyfrp.cli.nathole import run_nathole

        return run_nathole(argv[1:])
    parser = FlagParser(
        "pyfrp client [verify]",
        "Run the client, which offers local services through the server (frpc).\n"
        f"Without -c it reads {CLIENT_FILE}.",
        _CLIENT_EXAMPLES,
    )
    add_common(parser)
    place = parser.first_word(argv)
    if place is not None and argv[place] != "verify":
        from pyfrp.cli import oneline

        line = oneline.find(argv, place)
        if line is not None:
            return _one_line(line)
    _refuse_later("client", argv)
    flags, words = parser.read(argv)
    done = _common(parser, flags)
    if done is not None:
        return done
    path = flags.config or CLIENT_FILE
    if _wants_verify(parser, "client", flags, words):
        return _check("client", path, flags)

    from pyfrp.config import check_supported

    cfg = _load_client(path, flags)
    check_supported(cfg)
    from pyfrp.cli.run import run_client

    return run_client(cfg, config_path=path)


def _one_line(line: OneLine) -> int:
    flags, words = line.parser.read(line.argv)
    done = _common(line.parser, flags)
    if done is not None:
        return done
    from pyfrp.config import check_supported

    cfg = line.config_of(flags, words)
    check_supported(cfg)
    from pyfrp.cli.run import run_client

    return run_client(cfg, config_path=None)


def _verify(argv: list[str]) -> int:
    from pyfrp.cli.server import add_common

    parser = FlagParser(
        "pyfrp verify [server|client]",
        "Check a configuration file: what a start would refuse is an error here too.",
        _VERIFY_EXAMPLES,
    )
    add_common(parser)
    flags, words = parser.read(argv)
    done = _common(parser, flags)
    if done is not None:
        return done
    roles = {"server": "server", "frps": "server", "client": "client", "frpc": "client"}
    unknown = [word for word in words if word not in roles]
    if unknown or len(words) > 1:
        word = (unknown or words)[-1]
        hint = "; name the file with -c" if os.path.exists(word) else ""
        raise UsageError(
            f'unknown argument "{word}" for "pyfrp verify"{hint}', parser.format_usage()
        )
    if not flags.config:
        raise UsageError("flag needs to be given: -c FILE", parser.format_usage())
    if words:
        return _check(roles[words[0]], flags.config, flags)
    from pyfrp.config import detect_role

    return _check(detect_role(flags.config), flags.config, flags)


def _schema(argv: list[str]) -> int:
    """Print what an editor needs to complete and check a configuration file."""
    import json

    from pyfrp.config import ClientConfig, ServerConfig
    from pyfrp.config.schema import pydantic_model

    roles: dict[str, type[Model]] = {
        "server": ServerConfig,
        "frps": ServerConfig,
        "client": ClientConfig,
        "frpc": ClientConfig,
    }
    if len(argv) != 1 or argv[0] not in roles:
        raise UsageError("name one of: server, client", "Usage:\n  pyfrp schema server|client\n")
    schema = pydantic_model(roles[argv[0]]).model_json_schema(by_alias=True)
    print(json.dumps(schema, indent=2))
    return OK


def _common(parser: FlagParser, flags: argparse.Namespace) -> int | None:
    """Do what --help and --version ask for; None when neither was given."""
    if flags.help:
        print(parser.format_help(), end="")
        return OK
    if flags.version:
        print(__version__)
        return OK
    return None


def _wants_verify(
    parser: FlagParser, role: str, flags: argparse.Namespace, words: list[str]
) -> bool:
    """Look at the words of a command line; the only one that means something is `verify`."""
    for word in words:
        if word != "verify":
            hint = "; name the file with -c" if os.path.exists(word) else ""
            text = f'unknown command "{word}" for "pyfrp {role}"{hint}'
            raise UsageError(text, parser.format_usage())
    return bool(flags.verify or words)


def _check(role: str, path: str, flags: argparse.Namespace) -> int:
    """Verify a file and print the result."""
    from pyfrp.cli.files import check_client_files, check_server_files
    from pyfrp.config import check_supported

    cfg: ServerConfig | ClientConfig
    if role == "server":
        program, cfg = "frps", _load_server(path, flags)
        check_files = partial(check_server_files, cfg)
    else:
        program, cfg = "frpc", _load_client(path, flags)
        check_files = partial(check_client_files, cfg)
    _warn(cfg.warnings)
    check_supported(cfg)
    _warn(check_files())
    print(f"{program}: the configuration file {path} syntax is ok")
    return OK


def _warn(warnings: list[str]) -> None:
    for warning in warnings:
        print(f"WARNING: {warning}")


def _load_server(path: str, flags: argparse.Namespace) -> ServerConfig:
    from pyfrp.config import load_server

    return load_server(path, strict=flags.strict_config, allow_unsafe=_unsafe(flags))


def _load_client(path: str, flags: argparse.Namespace) -> ClientConfig:
    from pyfrp.config import load_client

    return load_client(path, strict=flags.strict_config, allow_unsafe=_unsafe(flags))


def _unsafe(flags: argparse.Namespace) -> list[str]:
    return [name for given in flags.allow_unsafe for name in given.split(",")]
