"""Mutates input, runs a target, keeps what is new, and shrinks what fails."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field

MAX_INPUT = 64 * 1024
MAX_CORPUS = 2000
SHRINK_S = 3.0

INTERESTING = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000)
LARGE = (2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1, 10240, 10241, 65536, 262144)

Behaviour = Hashable


@dataclass(frozen=True)
class Target:
    """One decoder under test.

    Args:
        run: `run(data, rng)`; may be a coroutine function. Returns what kind of behaviour it saw.
        seeds: Good input to start from.
        tokens: Bytes that mean something to the decoder.
    """

    name: str
    run: Callable[[bytes, random.Random], Behaviour | Awaitable[Behaviour]]
    seeds: Sequence[bytes]
    tokens: Sequence[bytes] = ()


class Failure(AssertionError):
    """A target raised something that must not happen."""

    def __init__(self, target: Target, data: bytes, seed: int, cause: BaseException) -> None:
        self.data = data
        super().__init__(
            f"{target.name}: {type(cause).__name__}: {cause}\n"
            f"input ({len(data)} bytes): {data.hex()}\n"
            f"again with: python -m tests.fuzz --seed {seed} --input {data.hex()[:2000]} "
            f"{target.name}"
        )


@dataclass
class Report:
    """What a run came to."""

    name: str
    runs: int = 0
    seconds: float = 0.0
    behaviours: set[Behaviour] = field(default_factory=set)

    def __str__(self) -> str:
        rate = self.runs / self.seconds if self.seconds else 0
        return (
            f"{self.name:16} {self.runs:9} inputs {rate:9.0f}/s "
            f"{len(self.behaviours):5} kinds of behaviour"
        )


class Mutator:
    """Varies input: bits, numbers, tokens, pieces of other input."""

    def __init__(self, target: Target, rng: random.Random) -> None:
        self._rng = rng
        self._tokens = list(target.tokens)
        self._moves = [
            self._flip,
            self._byte,
            self._cut,
            self._repeat,
            self._insert,
            self._number,
            self._splice,
            self._swap,
        ]
        if self._tokens:
            self._moves += [self._token, self._token, self._replace]

    def vary(self, data: bytes, corpus: Sequence[bytes]) -> bytes:
        made = bytearray(data)
        for _ in range(self._rng.choice((1, 1, 2, 3, 6))):
            self._rng.choice(self._moves)(made, corpus)
        return bytes(made[:MAX_INPUT])

    def _place(self, made: bytearray) -> int:
        return self._rng.randrange(len(made) + 1)

    def _span(self, made: bytearray) -> tuple[int, int]:
        start = self._place(made)
        return start, min(len(made), start + self._rng.choice((1, 2, 4, 9, 16, 64, 500)))

    def _flip(self, made: bytearray, corpus: Sequence[bytes]) -> None:
        if made:
            made[self._rng.randrange(len(made))] ^= 1 << self._rng.randrange(8)

    def _byte(self, made: bytearray, corpus: Sequence[bytes]) -> None:
        if made:
            made[self._rng.randrange(len(made))] = self._rng.randrange(256)

    def _cut(self, made: bytearray, corpus: Sequence[bytes]) -> None:
        start, end = self._span(made)
        if self._rng.random() < 0.2:
            end = len(made)
        del made[start:end]

    def _repeat(self, made: bytearray, corpus: Sequence[bytes]) -> None:
        start, end = self._span(made)
        made[start:start] = made[start:end] * self._rng.choice((1, 1, 2, 20))

    def _insert(self, made: bytearray, corpus: Sequence[bytes]) -> None:
        at = self._place(made)
        made[at:at] = self._rng.randbytes(self._rng.choice((1, 2, 5, 12, 40)))

    def _number(self, made: bytearray, corpus: Sequence[bytes]) -> None:
        size = self._rng.choice((1, 2, 3, 4, 8))
        value = self._rng.choice(INTERESTING + LARGE) + self._rng.choice((-1, 0, 0, 1))
        order = self._rng.choice(("big", "big", "little"))
        at = self._place(made)
        made[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, order)

    def _splice(self, made: bytearray, corpus: Sequence[bytes]) -> None:
        other = self._rng.choice(corpus)
        start = self._rng.randrange(len(other) + 1)
        made[self._place(made) :] = other[start:]

    def _swap(self, made: bytearray, corpus: Sequence[bytes]) -> None:
        start, end = self._span(made)
        piece = made[start:end]
        del made[start:end]
        at = self._place(made)
        made[at:at] = piece

    def _token(self, made: bytearray, corpus: Sequence[bytes]) -> None:
        at = self._place(made)
        made[at:at] = self._rng.choice(self._tokens)

    def _replace(self, made: bytearray, corpus: Sequence[bytes]) -> None:
        found = [token for token in self._tokens if token in made]
        if found:
            old = self._rng.choice(found)
            at = made.find(old)
            made[at : at + len(old)] = self._rng.choice(self._tokens)


def cut(data: bytes, rng: random.Random) -> list[bytes]:
    """Cut input into pieces: sometimes not at all, sometimes into single bytes."""
    how = rng.random()
    if how < 0.2 or len(data) < 2:
        return [data] if data else []
    if how < 0.35 and len(data) < 2000:
        return [data[i : i + 1] for i in range(len(data))]
    cuts = sorted({0, len(data), *(rng.randrange(len(data)) for _ in range(rng.randint(1, 6)))})
    return [data[a:b] for a, b in itertools.pairwise(cuts)]


def fuzz(target: Target, seconds: float, seed: int) -> Report:
    """Run a target for `seconds` of this process's time, so that a busy machine tries no less.

    Raises:
        Failure: with the shortest input found that still fails.
    """
    return asyncio.run(_fuzz(target, seconds, seed))


def once(target: Target, data: bytes, seed: int) -> Behaviour:
    """Run a target on one input."""

    async def run() -> Behaviour:
        return await _run(target, data, seed)

    return asyncio.run(run())


async def _run(target: Target, data: bytes, seed: int) -> Behaviour:
    """One input; what fails in callbacks of the loop counts as well."""
    loop = asyncio.get_running_loop()
    escaped: list[BaseException] = []
    loop.set_exception_handler(
        lambda _, context: escaped.append(context.get("exception") or Exception(str(context)))
    )
    result = target.run(data, random.Random(seed))
    if inspect.isawaitable(result):
        result = await result
    if escaped:
        raise escaped[0]
    return result


async def _fuzz(target: Target, seconds: float, seed: int) -> Report:
    rng = random.Random(seed)
    mutator = Mutator(target, rng)
    report = Report(target.name)
    corpus = list(target.seeds) or [b""]
    begin = time.process_time()
    end = begin + seconds
    fresh = list(corpus)
    while True:
        if fresh:
            data = fresh.pop()
        elif time.process_time() > end:
            break
        else:
            data = mutator.vary(rng.choice(corpus), corpus)
        number = rng.randrange(2**32)
        try:
            behaviour = await _run(target, data, number)
        except Exception as exc:
            shorter = await _shrink(target, data, number, exc)
            raise Failure(target, shorter, number, exc) from exc
        report.runs += 1
        if behaviour not in report.behaviours:
            report.behaviours.add(behaviour)
            if len(corpus) < MAX_CORPUS:
                corpus.append(data)
    report.seconds = time.process_time() - begin
    return report


async def _shrink(target: Target, data: bytes, seed: int, cause: Exception) -> bytes:
    """Leave out as much as can be without losing the failure."""
    end = time.monotonic() + SHRINK_S
    step = len(data) // 2
    while step:
        at = 0
        while at < len(data) and time.monotonic() < end:
            shorter = data[:at] + data[at + step :]
            try:
                await _run(target, shorter, seed)
            except Exception as exc:
                if type(exc) is type(cause):
                    data = shorter
                    continue
            at += step
        step //= 2
    return data
