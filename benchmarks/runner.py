"""Runs rows: each round takes the pairs in turn, each measurement on freshly started processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from benchmarks.load import Spec
from benchmarks.pairs import Pair, Running
from benchmarks.processes import BenchError, Child, module
from benchmarks.rows import Row

_LOAD_MARGIN_S = 120.0
"""What a load may take besides its warm-up and window: opening streams, noticing a stall."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long and how often to measure."""

    rounds: int
    warm_s: float
    window_s: float


DEFAULT_PACE = Pace(rounds=3, warm_s=1.0, window_s=4.0)
QUICK_PACE = Pace(rounds=1, warm_s=0.5, window_s=1.5)


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement: of a row, with a pair, in a round. `error` tells why it has no figures."""

    row: str
    pair: str
    round: int
    figures: dict[str, float]
    error: str = ""


@dataclass(frozen=True, slots=True)
class Service:
    """What is behind the tunnel."""

    process: Child
    port: int


class Runner:
    """Owns the services and the folder of one run."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._say = say
        self._services: dict[str, Service] = {}

    def service(self, row: Row) -> Service:
        """What is behind the tunnel; started with the first row that asks for it."""
        name = row.service
        if name not in self._services:
            process = module(f"benchmarks.{name}", self._folder / f"{name}.log")
            try:
                self._services[name] = Service(process, int(process.first_line()))
            except ValueError:
                process.end()
                raise BenchError(f"the {name} did not start: {process.tail()}") from None
        return self._services[name]

    def close(self) -> None:
        for service in self._services.values():
            service.process.end()

    def run(self, rows: list[Row], pairs: list[Pair], pace: Pace) -> list[Sample]:
        """Measure each row, in each round, with each pair in turn."""
        samples: list[Sample] = []
        for row in rows:
            for turn in range(1, pace.rounds + 1):
                for _ in range(row.repeats):
                    for pair, name, transport in _turn(row, pairs):
                        sample = self._measure(row, pair, name, transport, turn, pace)
                        samples.append(sample)
                        self._say(_line(row, sample))
        return samples

    def _measure(
        self, row: Row, pair: Pair, name: str, transport: str, turn: int, pace: Pace
    ) -> Sample:
        try:
            figures = self._figures(row, pair, transport, pace, row.idle_proxies)
            if row.idle_proxies:
                without = self._figures(row, pair, transport, pace, 0)
                more_mib = figures["idle_rss_mib"] - without["idle_rss_mib"]
                figures["proxy_kb"] = more_mib * 1024 / row.idle_proxies
        except BenchError as exc:
            return Sample(row.name, name, turn, {}, str(exc))
        return Sample(row.name, name, turn, figures)

    def _figures(
        self, row: Row, pair: Pair, transport: str, pace: Pace, idle_proxies: int
    ) -> dict[str, float]:
        folder = self._folder / pair.name
        port = self.service(row).port
        with pair.running(folder, port, row.proxy, idle_proxies, transport) as running:
            if row.kind == "start":
                return {"ready_ms": running.ready_s * 1e3}
            return self.load(row, running, pace)

    def load(self, row: Row, running: Running, pace: Pace) -> dict[str, float]:
        """Put one row's load on a running pair; returns the generator's figures."""
        spec = Spec(
            kind=row.kind,
            port=running.port,
            backend_pid=self.service(row).process.pid,
            pids=running.pids,
            connections=row.connections,
            up=row.up,
            down=row.down,
            every_ms=row.every_ms,
            step=row.step,
            warm_s=pace.warm_s,
            window_s=pace.window_s,
        )
        limit_s = pace.warm_s + pace.window_s + _LOAD_MARGIN_S
        generator: Child
        with module("benchmarks.load", self._folder / "load.log") as generator:
            result = json.loads(generator.converse(json.dumps(asdict(spec)), limit_s))
        if "error" in result:
            raise BenchError(result["error"])
        del result["spec"]
        return dict(result)


OURS = "pyfrp"


def beside(row: Row) -> str:
    """Name in the samples of what a row's figures of pyfrp are compared with."""
    return f"{OURS} over {row.beside}" if row.beside else "official"


def _turn(row: Row, pairs: list[Pair]) -> Iterator[tuple[Pair, str, str]]:
    """What is measured for a row in one round: a pair, its name, and its transport."""
    for pair in pairs:
        if row.proxy not in pair.carries:
            continue
        if row.beside and pair.name == OURS:
            yield pair, beside(row), row.beside
        if row.transport in pair.speaks:
            yield pair, pair.name, row.transport


def _line(row: Row, sample: Sample) -> str:
    if sample.error:
        text = f"failed: {sample.error}"
    else:
        text = ", ".join(
            f"{metric.label} {sample.figures[metric.key]:.{metric.digits}f}"
            for metric in row.metrics
        )
    return f"{row.name:9} round {sample.round} {sample.pair:9} {text}"


def medians(samples: list[Sample]) -> dict[tuple[str, str], dict[str, float]]:
    """The median over all rounds of each figure, by (row, pair); failed samples are left out."""
    grouped: dict[tuple[str, str], dict[str, list[float]]] = {}
    for sample in samples:
        figures = grouped.setdefault((sample.row, sample.pair), {})
        for key, value in sample.figures.items():
            figures.setdefault(key, []).append(value)
    return {
        where: {key: median(values) for key, values in figures.items()}
        for where, figures in grouped.items()
    }
