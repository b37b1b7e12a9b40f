"""Error rates of the comparison with the champion, simulated: what the gate does with models known to differ.

    python -m luigi_tasks.gate.simulation --holdout 400 --apart-percent 5

prints how often an equal model is refused or held, and how often one that is 3 points worse passes.
"""

from __future__ import annotations

import argparse
import collections
import functools
import sys

import msgspec
import numpy as np

from luigi_tasks.gate.paired import Paired, compare
from luigi_tasks.gate.records import PASSED, REFUSED, THIN, ErrorRates

# A head and the one before a tenth of its pictures arrived tell 0.5 to 1.8 % apart, and the one before half
# of them 6.5 % (docs/decisions/0010-gate-evidence.md): between, on the careful side.
TYPICAL_APART = 0.05
DRAWS = 20_000


def simulate(
    units: int,
    *,
    apart: float = TYPICAL_APART,
    worse_points: float = 3.0,
    allowed_points: float = 0.5,
    margin_points: float = 3.0,
    draws: int = DRAWS,
    seed: int = 1,
) -> ErrorRates:
    """Simulate the comparison of a candidate with its champion.

    Each of `units` independent groups is lost, gained or neither; the counts are drawn, and judged by the
    rule that judges candidates.

    Args:
        units: Size of the hold-out, in groups (in pictures, where none belong together).
        apart: Share of the hold-out that exactly one of the two models answers right; at least the loss.
        worse_points: By how much the worse model is worse, percentage points.
        allowed_points: `[gate] max_champion_drop_points`.
        margin_points: `[gate] champion_margin_points`.
        draws: Comparisons of each kind.
        seed: Seed of the random numbers.
    """
    random = np.random.default_rng(seed)
    apart = max(apart, worse_points / 100)
    found = {
        points: _count_outcomes(units, apart, points / 100, allowed_points, margin_points, draws, random)
        for points in (0.0, worse_points)
    }
    equal, worse = found[0.0], found[worse_points]
    return ErrorRates(
        units=units,
        apart=apart,
        worse_points=worse_points,
        equal_refused=equal[REFUSED] / draws,
        equal_held=equal[THIN] / draws,
        worse_passed=worse[PASSED] / draws,
        worse_refused=worse[REFUSED] / draws,
    )


def _count_outcomes(
    units: int,
    apart: float,
    loss: float,
    allowed_points: float,
    margin_points: float,
    draws: int,
    random: np.random.Generator,
) -> collections.Counter[str]:
    judge = functools.cache(
        lambda lost, gained: compare(Paired(units, lost, gained), allowed_points, margin_points)
    )
    shares = [(apart + loss) / 2, (apart - loss) / 2, 1 - apart]
    counts = random.multinomial(units, shares, draws)
    return collections.Counter(judge(int(lost), int(gained)) for lost, gained, _ in counts)


def main(arguments: list[str] | None = None) -> int:
    """Print the error rates for one size of the hold-out, as a sentence or as JSON."""
    parser = argparse.ArgumentParser(prog="luigi_tasks.gate.simulation", description=__doc__)
    parser.add_argument("--holdout", type=int, nargs="+", default=[400, 2000], help="groups in the hold-out")
    parser.add_argument("--apart-percent", type=float, nargs="+", default=[3.0, 5.0, 10.0, 20.0])
    parser.add_argument("--worse-points", type=float, default=3.0)
    parser.add_argument("--json", action="store_true", help="one JSON document a line")
    options = parser.parse_args(arguments)
    for units in options.holdout:
        for percent in options.apart_percent:
            rates = simulate(units, apart=percent / 100, worse_points=options.worse_points)
            line = msgspec.json.encode(rates).decode() if options.json else rates.in_words()
            sys.stdout.write(f"{line}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
