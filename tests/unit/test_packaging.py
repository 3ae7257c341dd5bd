"""What leaves the repository: wheel, source archive, units, sample configurations, scripts."""

from __future__ import annotations

import configparser
import hashlib
import io
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from scripts import fetch_official
from tests.support import official
from tests.unit.net.tls_pair import certificate

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))
LIMIT_S = 240


def run(*words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("FRP_", "LLM_"))}
    return subprocess.run(
        [str(word) for word in words],
        cwd=ROOT,
        env=clean | env,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


# -- archives


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    done = run(sys.executable, "-m", "hatchling", "build", "-d", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_wheel_holds_the_package_and_its_licence_alone(archives: Path):
    (wheel,) = archives.glob("*.whl")
    assert re.fullmatch(r"pyfrp_tunnel-[\d.]+-py3-none-any\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        tops = {name.split("/")[0] for name in names}
        (info,) = tops - {"pyfrp"}
        metadata = archive.read(f"{info}/METADATA").decode()
        entry = archive.read(f"{info}/entry_points.txt").decode()
    assert f"{info}/licenses/LICENSE" in names
    assert {"pyfrp/__main__.py", "pyfrp/py.typed", "pyfrp/cli/main.py"} <= set(names)
    assert not [name for name in names if name.endswith((".pyc", ".toml"))]
    assert "pyfrp = pyfrp.cli.main:main" in entry
    assert "\nRequires-Python: >=3.11\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata


def test_source_archive_builds_and_tests_by_itself(archives: Path):
    (archive,) = archives.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {
        "pyproject.toml",
        "Makefile",
        "LICENSE",
        "README.md",
        "README.ko.md",
        "CHANGELOG.md",
        "pyfrp/errors.py",
        "tests/conftest.py",
        "configs/frps.toml",
        "systemd/frpc.service",
        "scripts/install-frps.sh",
    } <= names
    assert not [name for name in names if ".cache" in name or name.endswith(".pyc")]


def test_version_is_said_in_one_place():
    from pyfrp.version import __version__

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["dynamic"] == ["version"]
    assert f"\n## {__version__} " in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_every_dependency_has_its_reason_beside_it():
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    (block,) = re.findall(r"^dependencies = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    lines = [line.strip() for line in block.splitlines()]
    for before, line in zip(["", *lines], lines, strict=False):
        assert line.startswith("#") or before.startswith("#"), line


# -- configurations


@pytest.mark.parametrize(("role", "name"), [("server", "frps.toml"), ("client", "frpc.toml")])
def test_sample_configuration_is_valid_and_has_a_sample_token(role: str, name: str):
    path = ROOT / "configs" / name
    done = run(sys.executable, "-m", "pyfrp", "verify", role, "-c", path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert tomllib.loads(path.read_text("utf-8"))["auth"]["token"] == "a-sample-token"


@pytest.mark.parametrize(("role", "name"), [("server", "frps.toml"), ("client", "frpc.toml")])
def test_sample_configuration_stays_valid_with_its_comments_taken_away(
    role: str, name: str, tmp_path: Path
):
    # What a reader uncomments has to work, where there are the files that it names.
    text = (ROOT / "configs" / name).read_text("utf-8")
    keys = r"^# (?=[\w.]+ = |\[\[)"
    text = re.sub(r'^log\.to = "console"\n', "", text, flags=re.MULTILINE)
    path = tmp_path / name
    bare = re.sub(keys, "", text, flags=re.MULTILINE)
    assert bare != text
    for file in set(re.findall(r'"/etc/frp/([\w.-]+\.(?:crt|key))"', bare)):
        (tmp_path / file).write_bytes(certificate())
    path.write_text(bare.replace("/etc/frp/", f"{tmp_path}/"), "utf-8")
    done = run(sys.executable, "-m", "pyfrp", "verify", role, "-c", path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.interop
@pytest.mark.parametrize("name", ["frps", "frpc"])
def test_sample_configuration_is_valid_for_the_official_programs(name: str):
    server, client = official.require_official()
    done = run(server if name == "frps" else client, "verify", "-c", f"configs/{name}.toml")
    assert done.returncode == 0, done.stdout + done.stderr


# -- units


@pytest.mark.parametrize(("role", "name"), [("server", "frps"), ("client", "frpc")])
def test_unit_runs_without_root_and_tells_when_it_is_ready(role: str, name: str):
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # keys keep their case
    unit.read_string((ROOT / "systemd" / f"{name}.service").read_text("utf-8"))
    service = unit["Service"]
    assert service["ExecStart"] == f"/opt/pyfrp/bin/pyfrp {role} -c /etc/frp/{name}.toml"
    assert service["Type"] == "notify"
    assert int(service["WatchdogSec"]) > 0
    assert service["User"] == service["Group"] == "frp"
    assert service["ProtectSystem"] == "strict"
    assert service["NoNewPrivileges"] == "yes"
    assert service["CapabilityBoundingSet"] == service["AmbientCapabilities"] == ""
    assert service["Restart"] == "always"
    assert service["StateDirectory"] == service["LogsDirectory"] == "pyfrp"
    if shutil.which("systemd-analyze"):
        assert complaints(name) == []
        path = ROOT / "systemd" / f"{name}.service"
        rated = run("systemd-analyze", "security", "--offline=yes", "--threshold=15", path)
        assert rated.returncode == 0, rated.stdout[-2000:]


def complaints(name: str) -> list[str]:
    """What systemd has to say about a unit, apart from what is so on purpose."""
    expected = (
        "Command /opt/pyfrp/bin/pyfrp is not executable",  # not installed here
        "RestartSteps",  # newer than some systemd, which ignores both
        "RestartMaxDelaySec",
    )
    said = run("systemd-analyze", "verify", ROOT / "systemd" / f"{name}.service").stderr
    ours = [line for line in said.splitlines() if f"{name}.service" in line]
    return [line for line in ours if not any(words in line for words in expected)]


# -- scripts


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_script_is_sound(path: Path):
    assert run("bash", "-n", path).returncode == 0
    if shutil.which("shellcheck"):
        done = run("shellcheck", "-x", path)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "name", ["install-frps.sh", "install-frpc.sh", "test-frp.sh", "test-llm-api.sh"]
)
def test_script_explains_itself_and_refuses_what_it_does_not_know(name: str):
    path = ROOT / "scripts" / name
    assert path.stat().st_mode & stat.S_IXUSR
    done = run(path, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: ")
    done = run(path, "--frobnicate")
    assert done.returncode == 1
    assert "--frobnicate" in done.stderr
    assert "--help" in done.stderr


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_install_upgrade_and_uninstall_of_both_sides_below_a_root(tmp_path: Path):
    root = tmp_path / "root"
    server, client = ROOT / "scripts/install-frps.sh", ROOT / "scripts/install-frpc.sh"
    program = root / "opt/pyfrp/bin/pyfrp"
    frps, frpc = root / "etc/frp/frps.toml", root / "etc/frp/frpc.toml"
    units = root / "etc/systemd/system"

    done = run(server, "--root", root, "--low-ports", PYTHON=sys.executable)
    assert done.returncode == 0, done.stdout + done.stderr
    assert run(program, "--version").returncode == 0
    assert mode(frps) == 0o600
    token = tomllib.loads(frps.read_text("utf-8"))["auth"]["token"]
    assert re.fullmatch(r"[0-9a-f]{64}", token), "a new configuration gets a token of its own"
    assert token not in done.stdout + done.stderr
    unit = (units / "frps.service").read_bytes()
    assert unit == (ROOT / "systemd/frps.service").read_bytes()
    assert "CAP_NET_BIND_SERVICE" in (units / "frps.service.d/low-ports.conf").read_text("utf-8")

    odd = 'a "quoted" \\ & token'
    given = ["--server", "frp.example.com", "--port", "7001", "--local-port", "4001"]
    done = run(client, "--root", root, *given, FRP_TOKEN=odd)
    assert done.returncode == 0, done.stdout + done.stderr
    assert odd not in done.stdout + done.stderr
    config = tomllib.loads(frpc.read_text("utf-8"))
    assert (config["serverAddr"], config["serverPort"]) == ("frp.example.com", 7001)
    assert config["auth"]["token"] == odd
    assert config["proxies"][0]["localPort"] == 4001
    assert mode(frpc) == 0o600

    frpc.write_text(frpc.read_text("utf-8") + "# mine\n", "utf-8")
    frpc.chmod(0o644)
    done = run(client, "--root", root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert frpc.read_text("utf-8").endswith("# mine\n"), "an existing configuration is kept"
    assert mode(frpc) == 0o600

    frpc.write_text("serverAdress = 1\n", "utf-8")
    done = run(client, "--root", root)
    assert done.returncode == 1
    assert "serverAdress" in done.stderr
    assert "Nothing was started" in done.stderr

    done = run(server, "--root", root, "--uninstall")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (units / "frps.service").exists()
    assert not (units / "frps.service.d").exists()
    assert frps.exists(), "the configuration stays"
    assert program.exists(), "the other service still needs it"
    done = run(client, "--root", root, "--uninstall", "--purge")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not program.exists()
    assert not frpc.exists()
    assert frps.exists(), "the other side's configuration is not touched"
    for script in (server, client):
        assert run(script, "--root", root, "--uninstall", "--purge").returncode == 0
    left = [path for path in root.rglob("*") if path.is_file()]
    assert left == []


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--purge"], "--uninstall"),
        (["--root"], "directory"),
        (["--port", "web"], "port number"),
        (["--port", "70000"], "port number"),
        (["--local-port", "0"], "port number"),
        (["--server"], "value"),
    ],
)
def test_installer_refuses_a_wrong_option_before_it_does_anything(words: list[str], reason: str):
    done = run(ROOT / "scripts/install-frpc.sh", *words)
    assert done.returncode == 1
    assert reason in done.stderr


@pytest.mark.parametrize("quote", ['"', "'"])
def test_check_script_reads_both_kinds_of_strings_of_toml(quote: str, tmp_path: Path):
    (tmp_path / "frps.toml").write_text("bindPort=1 # one\nvhostHTTPPort = 2\n")
    words = "serverAddr = 'localhost'  # here\ncustomDomains = [ 'a.test', 'b.test' ]\n"
    (tmp_path / "frpc.toml").write_text(words.replace("'", quote))
    done = run(ROOT / "scripts/test-frp.sh", "client", FRP_ETC=str(tmp_path))
    assert "nothing accepts at localhost:1 " in done.stdout
    assert "no HTTP answer from localhost:2 " in done.stdout


def test_environment_script_says_what_is_missing():
    done = run(
        "bash", "-c", ". scripts/lib.sh; find_python", PATH="/nowhere:/bin:/usr/bin", PYTHON="bash"
    )
    assert done.returncode == 1
    assert "not a Python 3.11" in done.stderr


def test_environment_script_names_the_package_that_makes_venvs(tmp_path: Path):
    # A Python as Debian ships it without python3-venv: new enough, but no ensurepip.
    fake = tmp_path / "python3"
    fake.write_text(
        f'#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; esac\nexec {sys.executable} "$@"\n', "utf-8"
    )
    fake.chmod(0o755)
    done = run("bash", "-c", ". scripts/lib.sh; find_python", PYTHON=str(fake))
    assert done.returncode == 1
    assert "python3-venv" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the path decides")
def test_environment_script_prefers_the_python_of_the_distribution(tmp_path: Path):
    """A version manager's comes first on the path, and is often built without optimisations."""
    other = tmp_path / "python3"
    other.symlink_to(sys.executable)
    find = (
        ". scripts/lib.sh; find_python;"
        "python_is_new_enough /usr/bin/python3 && python_makes_venvs /usr/bin/python3 || echo no"
    )
    found = run("bash", "-c", find, PATH=f"{tmp_path}:{os.environ['PATH']}").stdout.split()
    assert found in (["/usr/bin/python3"], [str(other), "no"])


# -- official programs


def archive_of(members: dict[str, bytes], path: Path, kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.type = kind
            member.size = len(data) if kind == tarfile.REGTYPE else 0
            member.linkname = "/etc/passwd"
            tar.addfile(member, io.BytesIO(data))
    return path


def test_official_programs_leave_the_archive_alone_and_whole(tmp_path: Path, monkeypatch):
    content = {"frps": b"server", "frpc": b"client"}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
    monkeypatch.setattr(fetch_official, "PROGRAM_SHA256", digests)
    members = {fetch_official.MEMBERS[name]: data for name, data in content.items()}
    archive = archive_of(members | {"../escape": b"x"}, tmp_path / "a.tar.gz")
    dest = tmp_path / "dest"
    fetch_official.extract(archive, dest)
    assert sorted(path.name for path in dest.iterdir()) == ["frpc", "frps"]
    assert fetch_official.in_place(dest)
    (dest / "frps").write_bytes(b"changed")
    assert not fetch_official.in_place(dest)


@pytest.mark.parametrize(
    ("names", "kind", "words"),
    [
        ([], tarfile.REGTYPE, "holds no"),
        (["frps", "frpc"], tarfile.SYMTYPE, "not a file"),
        (["frps", "frpc"], tarfile.REGTYPE, "another content"),
    ],
    ids=["missing", "link", "changed"],
)
def test_archive_that_is_not_the_known_one_is_refused(names, kind, words, tmp_path: Path):
    members = {fetch_official.MEMBERS[name]: b"other" for name in names}
    archive = archive_of(members, tmp_path / "a.tar.gz", kind)
    with pytest.raises(fetch_official.FetchError, match=words):
        fetch_official.extract(archive, tmp_path / "dest")
    assert list((tmp_path / "dest").iterdir()) == []


def test_other_platform_is_told_that_there_is_nothing_to_fetch(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fetch_official.platform, "machine", lambda: "aarch64")
    assert fetch_official.main(["--dest", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "aarch64" in said.err


# -- README

READMES = ("README.md", "README.ko.md")


@pytest.mark.parametrize("name", READMES)
def test_readme_names_only_what_exists(name: str):
    text = (ROOT / name).read_text("utf-8")
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE))
    assert named
    assert named <= set(targets)
    for path in re.findall(r"(?<![/\w])(?:scripts|configs|systemd)/[\w.-]+", text):
        assert (ROOT / path).exists(), path
    headings = re.findall(r"^#{2,3} (.+)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for anchor in re.findall(r"\]\(#([^)]+)\)", text):
        assert anchor in anchors, anchor
    for path in re.findall(r"\]\(([\w./-]+)\)", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("name", READMES)
def test_readme_shows_a_pair_of_files_that_work(name: str, tmp_path: Path):
    text = (ROOT / name).read_text("utf-8")
    (pair,) = re.findall(r"```toml\n(# frps\.toml.*?customDomains.*?)```", text, re.DOTALL)
    columns: tuple[list[str], list[str]] = ([], [])
    for line in pair.splitlines():
        left, _, right = line.partition("   ")
        columns[0].append(left)
        columns[1].append(right.strip())
    for role, column in zip(("server", "client"), columns, strict=True):
        path = tmp_path / f"{role}.toml"
        path.write_text("\n".join(column), "utf-8")
        done = run(sys.executable, "-m", "pyfrp", "verify", role, "-c", path)
        assert done.returncode == 0, done.stdout
    server, client = (tomllib.loads("\n".join(column)) for column in columns)
    assert server["auth"]["token"] == client["auth"]["token"]
    assert client["proxies"][0]["customDomains"] == ["llm.local"]


def test_both_readmes_show_the_same_commands_and_keys():
    def shown(name: str) -> list[str]:
        text = (ROOT / name).read_text("utf-8")
        blocks = re.findall(r"^```\w+\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        code = re.sub(r"#.*|<[^>]*>|\"[^\"\n]*\"", "", "".join(blocks))
        rows = [line.count("|") for line in text.splitlines() if line.startswith("|")]
        return [*code.split(), *map(str, rows)]

    assert shown(READMES[0]) == shown(READMES[1])
