"""The result as a Markdown table, with what a reader needs to repeat it."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.rows import Metric, Row
from benchmarks.runner import Pace, Sample, beside, medians

_SATURATED = 0.97
"""Share of all cores' time above which delays tell of the machine rather than of the tunnel."""
_MISSING_TOKENS = 0.98


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one figure reaches its floors; `passed` is None when there is nothing to judge."""

    floor: str
    passed: bool | None


def judge(
    metric: Metric, ours: float | None, official: float | None, nginx: float | None
) -> Verdict:
    """Compare pyfrp's figure with the floors of a metric.

    A floor whose other side was not measured is not judged.
    """
    floors: list[str] = []
    results: list[bool] = []
    ratio, beside_nginx = _ratio(ours, official), _ratio(ours, nginx)
    if metric.at_most is not None:
        floors.append(f"≤ {metric.at_most:.2f}x")
        if ratio is not None:
            results.append(ratio <= metric.at_most)
    if metric.at_least is not None:
        floors.append(f"≥ {metric.at_least:.1f}x")
        if ratio is not None:
            results.append(ratio >= metric.at_least)
    if metric.below is not None:
        floors.append(f"< {metric.below:.2f}x")
        if ratio is not None:
            results.append(ratio < metric.below)
    if metric.below_nginx is not None:
        floors.append(f"< {metric.below_nginx:.2f}x nginx")
        if beside_nginx is not None:
            results.append(beside_nginx < metric.below_nginx)
    if metric.limit is not None:
        floors.append(f"≤ {metric.limit:.0f}")
        if ours is not None:
            results.append(ours <= metric.limit)
    return Verdict(", ".join(floors), all(results) if results else None)


def failures(rows: list[Row], samples: list[Sample]) -> list[str]:
    """Rows and figures of pyfrp's pair that miss a floor."""
    figures = medians(samples)
    missed = []
    for row in rows:
        for metric in row.metrics:
            ours, official, nginx = (
                figures.get((row.name, pair), {}).get(metric.key)
                for pair in ("pyfrp", beside(row), "nginx")
            )
            if judge(metric, ours, official, nginx).passed is False:
                missed.append(f"{row.name}: {metric.label}")
    return missed


def markdown(
    rows: list[Row],
    samples: list[Sample],
    facts: dict[str, str],
    notes: list[str],
    pace: Pace,
    command: str,
) -> str:
    """The whole report.

    `facts` are machine and versions, `notes` what was left out and why.
    """
    figures = medians(samples)
    extra = ["direct"] if any(sample.pair == "direct" for sample in samples) else []
    columns = ["load", "figure", "official", "pyfrp", "ratio", "nginx", "ratio", "floor", "reached"]
    lines = [
        "| " + " | ".join([*columns, *extra]) + " |",
        "|---|---|" + "---:|" * 5 + "---|---|" + "---:|" * len(extra),
    ]
    for row in rows:
        for index, metric in enumerate(row.metrics):
            ours, official, nginx, direct = (
                figures.get((row.name, pair), {}).get(metric.key)
                for pair in ("pyfrp", beside(row), "nginx", "direct")
            )
            verdict = judge(metric, ours, official, nginx)
            cells = [
                f"{row.title} (`{row.name}`)" if index == 0 else "",
                metric.label,
                _number(official, metric.digits),
                _number(ours, metric.digits),
                _times(_ratio(ours, official)),
                _number(nginx, metric.digits),
                _times(_ratio(ours, nginx)),
                verdict.floor or "-",
                {True: "yes", False: "**NO**", None: "-"}[verdict.passed],
            ]
            cells += [_number(direct, metric.digits) for _ in extra]
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", *(f"- {name}: {value}" for name, value in facts.items())]
    lines += [
        f"- command: `{command}`",
        f"- median of {pace.rounds} rounds of {pace.window_s:g} s after {pace.warm_s:g} s of "
        "warm-up, pairs taken in turn; default configuration with TLS and tcpMux, over tcp where a "
        "row does not say otherwise; CPU is user plus system time of both processes "
        "by process clocks; ratios are pyfrp's figure divided by the other's",
        "- event rates: "
        + (
            ", ".join(
                f"{row.name} {1000 / row.every_ms:g}/s for each stream"
                for row in rows
                if row.kind == "streams"
            )
            or "none"
        ),
    ]
    lines += [f"- {note}" for note in [*notes, *_doubts(samples)]]
    return "\n".join(lines) + "\n"


def _doubts(samples: list[Sample]) -> list[str]:
    """Measurements that a reader should not trust blindly."""
    doubts = []
    for sample in samples:
        where = f"{sample.row}, round {sample.round}, {sample.pair}"
        if sample.error:
            doubts.append(f"{where} failed: {sample.error}")
            continue
        if sample.figures.get("errors"):
            doubts.append(f"{where}: {sample.figures['errors']:.0f} requests or streams broke")
        if sample.figures.get("expected_share", 1.0) < _MISSING_TOKENS:
            doubts.append(
                f"{where}: only {sample.figures['expected_share']:.0%} of the tokens came in time"
            )
        if {"app", "sse", "step"} & set(sample.row.split("-")) and sample.figures.get(
            "busy", 0.0
        ) > _SATURATED:
            doubts.append(f"{where}: the machine was saturated, delays tell little")
    return doubts


def _ratio(ours: float | None, other: float | None) -> float | None:
    return ours / other if ours is not None and other else None


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _times(ratio: float | None) -> str:
    if ratio is None:
        return "-"
    return f"{ratio:.1f}x" if ratio >= 10 else f"{ratio:.2f}x"
