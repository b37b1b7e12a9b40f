"""Words for what the gate found: shares, sizes, checks with their limits, and the verdict."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from luigi_tasks.gate.records import PASSED, REFUSED, THIN

if TYPE_CHECKING:
    from luigi_tasks.gate.records import Check, Verdict

# Units of checks whose limit is a smallest number.
COUNTED = {"pictures", "groups of pictures", "classes"}


@dataclasses.dataclass(frozen=True)
class Mark:
    """Words for an outcome: of the page's title, of its heading and of one check; `mark` is a CSS class."""

    mark: str
    word: str
    title: str
    check: str


MARKS = {
    PASSED: Mark(PASSED, "Passed", "✓ Passed the gate", "✓ passed"),
    REFUSED: Mark(REFUSED, "Refused", "✕ Refused by the gate", "✕ failed"),
    THIN: Mark(THIN, "Held", "? Held: not enough evidence", "? not enough evidence"),
}
PASSED_THIN = Mark(THIN, "Passed on thin evidence", "✓ Passed, on thin evidence", "✓ passed")


def percent(share: float) -> str:
    """Format a share: 0.9512 -> 95.12 %, rounded down, so that 100 % means all."""
    return f"{math.floor(share * 10000 + 1e-6) / 100:.2f} %"


def describe_interval(interval: tuple[float, float]) -> str:
    """Format an interval of a share: (0.8012, 0.9) -> 80.12 to 90.00 %."""
    low, high = interval
    return f"{low * 100:.2f} to {high * 100:.2f} %"


def describe_check_interval(check: Check) -> str:
    """Format the interval of what a check measured: of a share in percent, else in its unit; empty: none."""
    if check.interval is None:
        return ""
    if check.unit.startswith("share"):
        return describe_interval(check.interval)
    low, high = check.interval
    return f"{low:.2f} to {high:.2f} {check.unit}"


def mark_verdict(verdict: Verdict) -> Mark:
    """Return the words for a verdict; one from before there were three outcomes passed or was refused."""
    if verdict.outcome == THIN and verdict.passed:
        return PASSED_THIN
    return MARKS[verdict.outcome or (PASSED if verdict.passed else REFUSED)]


def mark_check(check: Check) -> Mark:
    """Return the words for the outcome of a check."""
    return MARKS[check.outcome or (PASSED if check.passed else REFUSED)]


def megabytes(size_bytes: float) -> str:
    """Format a size: 2738448 -> 2.74 MB, below 0.1 MB in kB."""
    return f"{size_bytes / 1e6:.2f} MB" if size_bytes >= 100_000 else f"{size_bytes / 1e3:.1f} kB"


def milliseconds(latency_ms: float | None) -> str:
    """Format a latency: 1.234 -> 1.23; a dash where none was measured."""
    return "-" if latency_ms is None else f"{latency_ms:.2f}"


def describe_check(check: Check) -> tuple[str, str]:
    """Format the measured value of a check and its limit."""
    if check.unit == "share":
        return percent(check.measured), f"at least {percent(check.limit)}"
    if check.unit == "share above":
        return percent(check.measured), f"above {percent(check.limit)}"
    if check.unit in COUNTED:
        return f"{check.measured:g}", f"at least {check.limit:g}"
    if check.unit == "bytes":
        return megabytes(check.measured), f"at most {megabytes(check.limit)}"
    gain = f"none, {-check.measured:.2f} {check.unit} better"
    # A note says what was counted: chance decides then, and not the bare difference.
    allowed = "what is chance, or" if check.note else "at most"
    return (
        gain if check.measured < 0 else f"{check.measured:.2f} {check.unit}",
        f"{allowed} {check.limit:g} {check.unit}",
    )
