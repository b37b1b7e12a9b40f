"""What the hit devices of a verdict have in common, and examples of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luigi_tasks.fleet.records import FAILURES, PASSED, Common, Example
from luigi_tasks.fleet.statistics import fisher_p, rounded

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from luigi_tasks.fleet.stage_view import Vote

EXAMPLES = 20
COMMON_AT_MOST = 8
# Chance that one fact at all is named that has nothing to do with it.
COMMON_P = 0.05


def facts_of(vote: Vote) -> tuple[str, ...]:
    """Return what is known of a device, as `name=value`: the registry's word first, then its report's."""
    device, report = vote.enrolled, vote.row.report if vote.row else None
    found = {f"site={device.site}": device.site, f"class={device.device_class}": device.device_class}
    found |= {f"tag={tag}": tag for tag in device.tags}
    if report is not None:
        machine = report.machine
        found |= {
            f"runtime={report.runtime}": report.runtime,
            f"machine={machine.model}": machine.model,
            f"architecture={machine.architecture}": machine.architecture,
            f"client={report.client}": report.client,
        }
    return tuple(sorted(fact for fact, value in found.items() if value))


def in_common(votes: Sequence[Vote], hit: Collection[str]) -> tuple[Common, ...]:
    """Return facts that hit devices have more often than others do.

    By Fisher's exact test, corrected for the number of facts (Bonferroni).
    """
    if not hit:
        return ()
    having: dict[str, list[int]] = {}
    for vote in votes:
        for fact in facts_of(vote):
            having.setdefault(fact, [0, 0])[vote.device not in hit] += 1
    hit_of = sum(vote.device in hit for vote in votes)
    others_of = len(votes) - hit_of
    tested = {fact: pair for fact, pair in having.items() if sum(pair) < len(votes)}
    found = []
    for fact, (hits, others) in tested.items():
        p = min(1.0, fisher_p(hits, hit_of, others, others_of) * len(tested))
        if p < COMMON_P:
            found.append((p, fact, hits, others))
    return tuple(
        Common(fact=fact, hit=hits, hit_of=hit_of, others=others, others_of=others_of, p=rounded(p))
        for p, fact, hits, others in sorted(found)[:COMMON_AT_MOST]
    )


def examples(votes: Sequence[Vote], hit: Collection[str]) -> tuple[Example, ...]:
    """Return at most twenty devices: the hit ones, then those that failed otherwise or are not heard of."""

    def order(vote: Vote) -> tuple[int, str]:
        if vote.device in hit:
            return 0, vote.device
        if vote.state in FAILURES:
            return 1, vote.device
        return (2 if not vote.is_heard else 3 if vote.state != PASSED else 4), vote.device

    shown = [vote for vote in sorted(votes, key=order) if order(vote)[0] < 4]
    return tuple(_example(vote) for vote in shown[:EXAMPLES])


def _example(vote: Vote) -> Example:
    report = vote.row.report if vote.row else None
    return Example(
        device=vote.device,
        state=vote.state,
        reason=vote.fault or _reason(vote),
        site=vote.enrolled.site,
        device_class=vote.enrolled.device_class,
        machine=report.machine.model if report else "",
        runtime=report.runtime if report else "",
    )


def _reason(vote: Vote) -> str:
    if vote.row is None or vote.row.report is None:
        return "nothing was heard of it"
    if vote.state in FAILURES:
        told = [
            one.reason or one.reason_code for one in vote.row.report.releases if one.release == vote.release
        ]
        if told and told[0]:
            return told[0]
    return "" if vote.is_heard else "it is silent"
