"""The command line: what runs, what is printed where, and how it ends."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyfrp.cli import main as command
from pyfrp.errors import ConfigError, LinkError
from pyfrp.version import FRP_VERSION, __version__

SERVER_FILE = 'bindPort = 7000\nauth.token = "x"\n'
CLIENT_FILE = (
    'auth.token = "x"\n[[proxies]]\nname = "a"\ntype = "http"\nlocalPort = 80\n'
    'customDomains = ["a"]\n'
)

Outcome = tuple[int, str, str]
Run = Callable[..., Outcome]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with one good file for each role."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "frps.toml").write_text(SERVER_FILE)
    (tmp_path / "frpc.toml").write_text(CLIENT_FILE)
    # No test here binds a port.
    monkeypatch.setattr("pyfrp.server.bind.bind_early", lambda cfg: {})
    return tmp_path


@pytest.fixture
def run(here: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process: exit code, standard output, standard error."""

    def call(*argv: str) -> Outcome:
        code = command.main(argv)
        out, err = capsys.readouterr()
        return code, out, err

    return call


class Started(list[tuple[Any, str | None]]):
    """The configurations that were to be run, with their paths."""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """Take the place of the services."""
    seen = Started()

    def run_client(cfg: Any, *, config_path: str | None) -> int:
        seen.append((cfg, config_path))
        return 7

    def run_server(cfg: Any, bound: Any, *, config_path: str | None) -> int:
        assert bound == {}
        return run_client(cfg, config_path=config_path)

    monkeypatch.setattr("pyfrp.cli.run.run_server", run_server)
    monkeypatch.setattr("pyfrp.cli.run.run_client", run_client)
    return seen


# --- versions and help -----------------------------------------------------------------------


def test_the_versions_are_those_of_this_release() -> None:
    assert (__version__, FRP_VERSION) == ("0.1.0", "0.65.0")


@pytest.mark.parametrize(
    "argv",
    [["-v"], ["--version"], ["server", "-v"], ["client", "--version"], ["verify", "-v"]],
)
def test_version_prints_the_version_only(run: Run, argv: list[str]) -> None:
    assert run(*argv) == (0, f"{__version__}\n", "")


@pytest.mark.parametrize("argv", [["-h"], ["--help"], ["help"]])
def test_help_shows_all_commands(run: Run, argv: list[str]) -> None:
    code, out, err = run(*argv)
    assert (code, err) == (0, "")
    for word in ("pyfrp server -c frps.toml", "pyfrp client -c frpc.toml", "verify", "demo"):
        assert word in out


@pytest.mark.parametrize("role", ["server", "client", "verify"])
def test_help_of_a_command_shows_flags_and_examples(run: Run, role: str) -> None:
    for argv in ([role, "--help"], [role, "-h"], ["help", role]):
        code, out, err = run(*argv)
        assert (code, err) == (0, "")
        assert "-c, --config FILE" in out
        assert "Examples:" in out


def test_nothing_to_do_is_an_error_with_help(run: Run) -> None:
    code, out, err = run()
    assert (code, out) == (1, "")
    assert "Usage:" in err


@pytest.mark.parametrize(
    ("role", "key"),
    [
        ("server", "vhostHTTPPort"),
        ("frps", "bindPort"),
        ("client", "serverAddr"),
        ("frpc", "start"),
    ],
)
def test_the_schema_of_a_file_names_its_keys(run: Run, role: str, key: str) -> None:
    code, out, err = run("schema", role)
    assert (code, err) == (0, "")
    assert key in json.loads(out)["properties"]


@pytest.mark.parametrize("argv", [["schema"], ["schema", "both"], ["schema", "server", "client"]])
def test_a_schema_needs_to_know_whose(run: Run, argv: list[str]) -> None:
    code, out, err = run(*argv)
    assert (code, out) == (1, "")
    assert "name one of: server, client" in err


def test_the_collector_runs_again_after_a_command(run: Run) -> None:
    run("verify", "-c", "frps.toml")
    assert gc.isenabled()


# --- verify -----------------------------------------------------------------------------------

OK_SERVER = "frps: the configuration file frps.toml syntax is ok\n"
OK_CLIENT = "frpc: the configuration file frpc.toml syntax is ok\n"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["server", "verify", "-c", "frps.toml"], OK_SERVER),
        (["server", "-c", "frps.toml", "verify"], OK_SERVER),
        (["server", "--verify", "-c", "frps.toml"], OK_SERVER),
        (["frps", "verify", "--config=frps.toml"], OK_SERVER),
        (["verify", "server", "-c", "frps.toml"], OK_SERVER),
        (["verify", "-c", "frps.toml"], OK_SERVER),
        (["verify", "-c", "frps.toml", "frps"], OK_SERVER),
        (["client", "verify", "-c", "frpc.toml"], OK_CLIENT),
        (["client", "--verify", "--config", "frpc.toml"], OK_CLIENT),
        (["verify", "client", "-c", "frpc.toml"], OK_CLIENT),
        (["verify", "-c", "frpc.toml"], OK_CLIENT),
        (["client", "verify"], OK_CLIENT.replace("frpc", "./frpc").replace("./frpc:", "frpc:")),
    ],
)
def test_a_good_file_is_told_in_frps_words(run: Run, argv: list[str], said: str) -> None:
    assert run(*argv) == (0, said, "")


def test_nothing_to_verify_is_no_error_for_the_server(run: Run) -> None:
    said = "frps: the configuration file is not specified\n"
    assert run("server", "verify") == (0, said, "")


def test_warnings_are_lines_of_their_own(run: Run, here: Path) -> None:
    (here / "frps.toml").write_text("bindPort = 7000\n")
    code, out, err = run("verify", "-c", "frps.toml")
    assert (code, err) == (0, "")
    first, second = out.splitlines()
    assert first.startswith("WARNING: auth.token is empty")
    assert second + "\n" == OK_SERVER


def test_a_bad_file_ends_with_1_and_tells_on_standard_output(run: Run, here: Path) -> None:
    (here / "frps.toml").write_text("bindPrt = 1\n")
    for argv in (["server", "verify"], ["server"], ["verify", "server"]):
        code, out, err = run(*argv, "-c", "frps.toml")
        assert (code, err) == (1, "")
        assert out == 'frps.toml:1: unknown field "bindPrt"; did you mean "bindPort"?\n'


LINK = "transport.tls."
PLUGIN = '[[proxies]]\nname = "a"\ntype = "tcp"\nremotePort = 6000\n[proxies.plugin]\n'


@pytest.mark.parametrize(
    ("role", "text", "said"),
    [
        (
            "server",
            f'{LINK}certFile = "/no.crt"\n{LINK}keyFile = "/no.key"\n',
            f"/no.crt: the certificate file does not exist; check {LINK}certFile\n",
        ),
        (
            "server",
            f'{LINK}trustedCaFile = "/no.pem"\n',
            f"/no.pem: the trusted CA file does not exist; check {LINK}trustedCaFile\n",
        ),
        (
            "client",
            f'{LINK}trustedCaFile = "/no.pem"\n',
            f"/no.pem: the trusted CA file does not exist; check {LINK}trustedCaFile\n",
        ),
        (
            "client",
            'auth.method = "oidc"\n[auth.oidc]\ntokenEndpointURL = "https://a.test"\n'
            'clientID = "a"\ntrustedCaFile = "/no.pem"\n',
            "/no.pem: the trusted CA file does not exist; check auth.oidc.trustedCaFile\n",
        ),
        (
            "client",
            PLUGIN
            + 'type = "tls2raw"\nlocalAddr = ":1"\ncrtPath = "/no.crt"\nkeyPath = "/no.key"\n',
            "/no.crt: the certificate file does not exist; check plugin.crtPath\n",
        ),
    ],
    ids=["server", "server-ca", "client-ca", "client-oidc", "client-plugin"],
)
def test_a_file_that_is_not_there_fails_verification(
    run: Run, here: Path, role: str, text: str, said: str
) -> None:
    name = "frps.toml" if role == "server" else "frpc.toml"
    token = "" if "oidc" in text else 'auth.token = "a-sample-token"\n'
    (here / name).write_text(token + text)
    assert run("verify", role, "-c", name) == (1, said, "")


def test_verification_tells_what_a_start_would_tell_of_files_and_makes_none(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(here / "state"))
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    (here / "frpc.toml").write_text(
        'auth.token = "a-sample-token"\n'
        + PLUGIN
        + 'type = "static_file"\nlocalPath = "nowhere"\n'
        + PLUGIN.replace('"a"', '"b"').replace("6000", "6001")
        + 'type = "tls2raw"\nlocalAddr = "127.0.0.1:80"\n'
    )
    warning = "WARNING: static_file: localPath nowhere is no directory\n"
    assert run("verify", "client", "-c", "frpc.toml") == (0, warning + OK_CLIENT, "")
    (here / "frps.toml").write_text('auth.token = "a-sample-token"\n')
    assert run("verify", "server", "-c", "frps.toml") == (0, OK_SERVER, "")
    assert not (here / "state").exists()


def test_what_a_start_would_refuse_fails_verification_too(
    run: Run, here: Path, started: Started
) -> None:
    (here / "frps.toml").write_text('auth.token = "x"\nsshTunnelGateway.bindPort = 443\n')
    for argv in (["server", "verify"], ["server"]):
        code, out, _ = run(*argv, "-c", "frps.toml")
        assert code == 1
        assert out.startswith(
            "frps.toml:2: sshTunnelGateway.bindPort is not available in this release"
        )
    assert started == []


def test_unknown_keys_pass_when_not_strict(run: Run, here: Path) -> None:
    (here / "frps.toml").write_text('auth.token = "x"\nbindPort = 7000\nfoo = 1\n')
    for flag in ("--strict_config=false", "--strict-config=false"):
        assert run("verify", flag, "-c", "frps.toml") == (0, OK_SERVER, "")
    assert run("verify", "-c", "frps.toml")[0] == 1


def test_unsafe_features_need_leave(run: Run, here: Path) -> None:
    exec_source = '{ type = "exec", exec = { command = "/no/such" } }'
    (here / "frps.toml").write_text(f"bindPort = 1\nauth.tokenSource = {exec_source}\n")
    _, out, _ = run("verify", "-c", "frps.toml")
    assert 'unsafe feature "TokenSourceExec" is not enabled' in out
    # What it names is not run to verify the file.
    said = run("verify", "--allow-unsafe", "Other,TokenSourceExec", "-c", "frps.toml")
    assert said == (0, OK_SERVER, "")


def test_a_missing_file_is_told_as_frp_does(run: Run) -> None:
    said = "open nope.toml: no such file or directory\n"
    assert run("server", "-c", "nope.toml") == (1, said, "")
    assert run("verify", "-c", "nope.toml") == (1, said, "")


# --- usage ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["foo"], "Error: unknown command: foo"),
        (["--foo"], "Error: unknown flag: --foo"),
        (["-c", "frps.toml"], "write `pyfrp server -c FILE`"),
        (["server", "foo"], 'Error: unknown command "foo" for "pyfrp server"'),
        (["server", "frps.toml"], "; name the file with -c"),
        (["server", "--nope"], "Error: unknown flag: --nope"),
        (["client", "-x"], "Error: unknown shorthand flag: 'x' in -x"),
        (["client", "--bind_port", "1"], "Error: unknown flag: --bind-port"),
        (["server", "-c"], "Error: flag needs an argument: -c, --config"),
        (["verify"], "Error: flag needs to be given: -c FILE"),
        (["verify", "both", "-c", "x"], 'Error: unknown argument "both"'),
        (["verify", "frps.toml"], "; name the file with -c"),
        (["verify", "server", "client", "-c", "x"], 'Error: unknown argument "client"'),
    ],
)
def test_usage_errors_go_to_standard_error_with_the_usage(
    run: Run, argv: list[str], words: str
) -> None:
    code, out, err = run(*argv)
    assert (code, out) == (1, "")
    assert words in err
    assert "sage:" in err


@pytest.mark.parametrize(
    "argv",
    [
        *(["client", word] for word in ("reload", "status", "stop", "completion")),
        ["client", "--config_dir", "x"],
        ["client", "-c", "x", "--config-dir=x"],
        ["server", "completion", "bash"],
    ],
)
def test_what_a_later_release_will_do_is_told_clearly(run: Run, argv: list[str]) -> None:
    code, out, err = run(*argv)
    assert (code, err) == (1, "")
    assert f"`pyfrp {argv[0]} " in out
    assert "is not available in this release of pyfrp: " in out


# --- running ----------------------------------------------------------------------------------


def test_the_server_runs_with_its_file(run: Run, started: Started) -> None:
    assert run("server", "-c", "frps.toml") == (7, "", "")
    ((cfg, path),) = started
    assert (path, cfg.bind_addr, cfg.auth.token) == ("frps.toml", "0.0.0.0", "x")


def test_the_server_runs_with_flags_alone(run: Run, started: Started) -> None:
    code, _, _ = run("server", "-p", "1234", "--token", "t")
    ((cfg, path),) = started
    assert (code, path, cfg.bind_port, cfg.auth.token) == (7, None, 1234, "t")


def test_flags_beside_a_file_have_no_effect_and_are_named(run: Run, started: Started) -> None:
    run("server", "-c", "frps.toml", "--bind_port", "1")
    ((cfg, _),) = started
    assert cfg.bind_port == 7000
    assert cfg.warnings == ["--bind-port has no effect together with -c"]


def test_the_client_runs_with_its_file_or_the_usual_one(run: Run, started: Started) -> None:
    assert run("client", "-c", "frpc.toml")[0] == 7
    assert run("client")[0] == 7
    assert [path for _, path in started] == ["frpc.toml", "./frpc.toml"]
    assert all(cfg.proxies[0].local_ip == "127.0.0.1" for cfg, _ in started)


def test_the_client_runs_with_one_line_and_no_file(run: Run, here: Path, started: Started) -> None:
    (here / "frpc.toml").unlink()
    assert run("client", "tcp", "-n", "a", "-l", "22", "-t", "x")[0] == 7
    assert run("frpc", "-s", "h", "stcp", "-u", "u", "visitor", *VISIT)[0] == 7
    (offered, no_path), (visiting, _) = started
    assert no_path is None
    assert [(proxy.type, proxy.name) for proxy in offered.proxies] == [("tcp", "a")]
    assert (visiting.server_addr, visiting.user, visiting.proxies) == ("h", "u", [])
    assert [visitor.server_name for visitor in visiting.visitors] == ["p"]


VISIT = ["-n", "v", "--server_name", "p", "--bind_port", "1"]


@pytest.mark.parametrize(
    ("argv", "words", "usage"),
    [
        (["tcp", "-n", "a", "--foo"], "unknown flag: --foo", True),
        (["tcp", "-n", "a", "--sk", "b"], "unknown flag: --sk", True),
        (["http", "-n", "a", "-r", "1"], "unknown shorthand flag: 'r' in -r", True),
        (["tcp", "-n"], "flag needs an argument: -n, --proxy-name", True),
        (["stcp", "visitor", "-l", "1"], "unknown shorthand flag: 'l' in -l", True),
        (["tcp"], "name should not be empty\n", False),
        (["tcp", "-n", "a", "-p", "x"], "invalid transport.protocol, optional values are", False),
        (["stcp", "visitor", "-n", "v"], "server name is required\n", False),
    ],
)
def test_a_wrong_line_starts_nothing(
    run: Run, started: Started, argv: list[str], words: str, usage: bool
) -> None:
    code, out, err = run("client", *argv)
    assert code == 1
    assert (out if usage else err) == ""
    assert (err if usage else out).startswith(f"Error: {words}" if usage else words)
    assert ("sage: pyfrp client" in err) is usage
    assert started == []


@pytest.mark.parametrize(
    ("argv", "prog"),
    [
        (["client", "tcp", "--help"], "pyfrp client tcp"),
        (["client", "help", "tcp"], "pyfrp client tcp"),
        (["help", "client", "xtcp", "visitor"], "pyfrp client xtcp visitor"),
        (["client", "xtcp", "visitor", "-h"], "pyfrp client xtcp visitor"),
        (["client", "help"], "pyfrp client [verify]"),
        (["server", "help"], "pyfrp server [verify]"),
    ],
)
def test_help_may_stand_before_or_behind_a_command(run: Run, argv: list[str], prog: str) -> None:
    code, out, err = run(*argv)
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: {prog} [flags]\n")


def test_the_demonstration_gets_its_own_arguments(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    def demo(argv: list[str]) -> int:
        seen.append(argv)
        return 3

    monkeypatch.setattr("pyfrp.cli.demo.run_demo", demo)
    assert run("demo", "--tokens", "5") == (3, "", "")
    assert seen == [["--tokens", "5"]]


# --- ends -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("bad"), 1, "bad\n"),
        (LinkError("gone"), 1, "gone\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_no_error_becomes_a_traceback(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
) -> None:
    def fail(*args: Any, **more: Any) -> int:
        raise error

    monkeypatch.setattr("pyfrp.cli.run.run_server", fail)
    assert run("server", "-c", "frps.toml") == (code, said, "")


def test_a_fault_of_our_own_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **more: Any) -> int:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("pyfrp.cli.run.run_server", fail)
    code, out, err = run("server", "-c", "frps.toml")
    assert (code, err) == (1, "")
    assert out.startswith("pyfrp: internal error at test_main.py:")
    assert "ZeroDivisionError: oops" in out
    assert out.count("\n") == 1
    monkeypatch.setenv("PYFRP_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        run("server", "-c", "frps.toml")


def process(*argv: str, cwd: Path, **more: Any) -> subprocess.CompletedProcess[bytes]:
    root = Path(command.__file__).resolve().parents[2]
    env = {**os.environ, "PYTHONPATH": str(root), **more.pop("env", {})}
    return subprocess.run(
        [sys.executable, "-m", "pyfrp", *argv],
        cwd=cwd,
        env=env,
        timeout=60,
        check=False,
        **more,
    )


def test_the_module_runs_as_a_program(here: Path) -> None:
    done = process("verify", "-c", "frps.toml", cwd=here, capture_output=True)
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, OK_SERVER, b"")


def test_what_the_terminal_cannot_show_is_escaped(here: Path) -> None:
    (here / "frps.toml").write_text('"schlüssel" = 1\n', encoding="utf-8")
    env = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = process("verify", "server", "-c", "frps.toml", cwd=here, env=env, capture_output=True)
    assert done.returncode == 1
    assert rb'unknown field "schl\xfcssel"' in done.stdout
    assert done.stderr == b""


def test_a_reader_that_is_gone_is_no_traceback(here: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = process("server", "--help", cwd=here, stdout=writing, stderr=subprocess.PIPE)
    finally:
        os.close(writing)
    assert done.stderr == b""
    assert done.returncode == 1


@pytest.mark.skipif(sys.platform == "win32", reason="descriptors are closed for the program")
@pytest.mark.parametrize("closed", [range(3), range(1, 2)])
def test_standard_streams_may_be_closed(here: Path, closed: range) -> None:
    def close() -> None:
        for fd in closed:
            os.close(fd)

    verify = process("verify", "-c", "frps.toml", cwd=here, preexec_fn=close)
    assert verify.returncode == 0
    text = f"{CLIENT_FILE}\n".replace("auth", 'serverPort = 1\nlog.to = "frpc.log"\nauth')
    (here / "frpc.toml").write_text(text)
    client = process("client", cwd=here, preexec_fn=close)  # With sockets, which come and go.
    assert client.returncode == 1
    assert "refused" in (here / "frpc.log").read_text()


def test_a_version_costs_no_heavy_import() -> None:
    code = (
        "import sys\nfrom pyfrp.cli.main import main\nmain(['-v'])\n"
        "heavy = {'pydantic', 'asyncio', 'uvloop', 'yaml', 'ssl', 'cryptography', 'structlog'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines() == [__version__, "[]"]


def test_a_file_costs_no_import_of_what_only_one_liners_need(here: Path) -> None:
    code = (
        "import sys\nfrom pyfrp.cli.main import main\nmain(['client', 'verify'])\n"
        "print(sorted({'pyfrp.cli.oneline', 'csv', 'difflib'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(Path(command.__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.splitlines()[1:] == ["[]"]
