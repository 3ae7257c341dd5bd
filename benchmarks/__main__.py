"""Command line: `python -m benchmarks`, from the root of the repository."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.measure import machine_facts
from benchmarks.pairs import PAIRS, Pair, versions
from benchmarks.processes import BenchError, Child, end_on_sigterm, raise_descriptor_limit
from benchmarks.report import failures, markdown
from benchmarks.rows import ROWS, Row, select_rows
from benchmarks.runner import DEFAULT_PACE, QUICK_PACE, Pace, Runner


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure pyfrp's pair beside the official frp pair and two plain nginx hops: "
        "same load, same backend, in turn, everything on loopback.",
        epilog="Rows: " + ", ".join(row.name for row in ROWS) + ". PYFRP_OFFICIAL_DIR names a "
        "folder with frps and frpc; without it they are fetched into .cache/official.",
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="one short round of each row: an impression")
    add("--rounds", type=int, metavar="N", help="rounds of each row (default 3; quick 1)")
    add("--seconds", type=float, metavar="S", help="length of a window (default 4; quick 1.5)")
    add(
        "--only",
        action="append",
        default=[],
        metavar="ROW",
        help="only this row; repeatable, separated by commas, or a pattern such as 'sse-*'",
    )
    add(
        "--pairs",
        default="official,pyfrp,nginx",
        metavar="NAMES",
        help="which to measure, of: " + ", ".join(PAIRS) + " (default: %(default)s)",
    )
    add(
        "--busy",
        type=int,
        default=0,
        metavar="N",
        help="beside N programs that compute without end, as a model on the same processor does",
    )
    add("--markdown", type=Path, metavar="FILE", help="write the report to a file too")
    add("--json", type=Path, metavar="FILE", help="write every sample to a file")
    add("--check", action="store_true", help="exit with 1 when a floor is missed")
    add(
        "--profile",
        metavar="ROW",
        help="run pyfrp's pair alone under this row for --seconds "
        "(default 60) and print its pids first, so that a profiler can be attached",
    )
    return parser


def _find_pairs(names: str) -> tuple[list[Pair], list[str]]:
    """The pairs that can run here, and a note for each that cannot."""
    pairs: list[Pair] = []
    notes: list[str] = []
    for name in names.split(","):
        if name not in PAIRS:
            raise BenchError(f"no pair is called {name!r}; there are: {', '.join(PAIRS)}")
        try:
            pairs.append(PAIRS[name]())
        except BenchError as exc:
            notes.append(f"{name} left out: {exc}")
    return pairs, notes


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _busy(programs: int, folder: Path) -> Iterator[None]:
    """Keep as many cores busy with other work, of the same priority."""
    with contextlib.ExitStack() as running:
        for _ in range(programs):
            loop = [sys.executable, "-c", "while True: pass"]
            running.enter_context(Child(loop, folder / "busy.log"))
        yield


def _profile(row: Row, seconds: float, names: str, folder: Path) -> int:
    """Run one pair under one row's load for a while; prints its pids first."""
    pairs, notes = _find_pairs(names)
    if not pairs:
        raise BenchError(notes[0])
    runner = Runner(folder, _say)
    try:
        with pairs[0].running(
            folder / "profile",
            runner.service(row).port,
            row.proxy,
            row.idle_proxies,
            row.transport,
        ) as running:
            server, client = running.pids
            _say(f"{pairs[0].name} under {row.name} for {seconds:g} s")
            print(f"server pid {server}\nclient pid {client}", flush=True)
            figures = runner.load(row, running, Pace(1, 1.0, seconds))
    finally:
        runner.close()
    print(json.dumps(figures, indent=2))
    return 0


def _bench(args: argparse.Namespace, rows: list[Row], folder: Path) -> int:
    pace = QUICK_PACE if args.quick else DEFAULT_PACE
    if args.rounds:
        pace = replace(pace, rounds=args.rounds)
    if args.seconds:
        pace = replace(pace, window_s=args.seconds)
    facts = machine_facts()
    pairs, notes = _find_pairs(args.pairs)
    for note in notes:
        _say(note)
    if not pairs:
        raise BenchError("nothing to measure")
    facts |= versions() | {"pairs": ", ".join(f"{pair.name} ({pair.version})" for pair in pairs)}

    began = time.monotonic()
    runner = Runner(folder, _say)
    try:
        with _busy(args.busy, folder):
            samples = runner.run(rows, pairs, pace)
    finally:
        runner.close()
    facts["wall time"] = f"{time.monotonic() - began:.0f} s"

    command = " ".join(["python -m benchmarks", *sys.argv[1:]])
    report = markdown(rows, samples, facts, notes, pace, command)
    print(report)
    if args.markdown:
        args.markdown.write_text(report)
    if args.json:
        data = {"facts": facts, "command": command, "samples": [asdict(one) for one in samples]}
        args.json.write_text(json.dumps(data, indent=1) + "\n")
    missed = failures(rows, samples)
    if missed:
        _say("floors missed: " + "; ".join(missed))
    wanted = "pyfrp" in args.pairs.split(",")
    absent = wanted and all(pair.name != "pyfrp" for pair in pairs)
    broken = absent or any(sample.error for sample in samples)
    return 1 if broken or (args.check and missed) else 0


def main() -> int:
    args = _parser().parse_args()
    if not sys.platform.startswith("linux"):
        print("the benchmark reads process clocks as Linux gives them: run it there")
        return 2
    end_on_sigterm()
    raise_descriptor_limit()
    try:
        patterns = [name for part in args.only for name in part.split(",")]
        rows = select_rows([args.profile] if args.profile else patterns)
        with tempfile.TemporaryDirectory(prefix="pyfrp-bench-") as folder:
            if args.profile:
                names = args.pairs if args.pairs != "official,pyfrp,nginx" else "pyfrp"
                return _profile(rows[0], args.seconds or 60.0, names, Path(folder))
            return _bench(args, rows, Path(folder))
    except (BenchError, ValueError) as exc:
        _say(f"bench: {exc}")
        return 2
    except KeyboardInterrupt:
        _say("bench: stopped; all children are ended")
        return 130


if __name__ == "__main__":
    sys.exit(main())
