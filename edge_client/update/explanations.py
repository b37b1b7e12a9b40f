"""Why a release serves, or another does not, after an update check: sentences for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_client.update.decision import Decision

if TYPE_CHECKING:
    from edge_client.update.decision import UpdateOutcome


def explain_outcome(outcome: UpdateOutcome, channel: str) -> str:
    """Return why the serving release serves, given the outcome of an update check."""
    if outcome.decision in {Decision.SERVES, Decision.INSTALL}:
        return f"{_explain_offer(outcome, channel, 'it')}{_explain_others(outcome)}"
    other = _explain_offer(outcome, channel, outcome.release)
    if outcome.decision is Decision.HELD and outcome.reason:
        return f"{other}, which {outcome.reason}"
    other = f"{other}, which {outcome.decision.value}"
    if outcome.decision is Decision.NOT_IN_SHARE:
        return f"{other} ({outcome.share_percent:g}% of the devices)"
    return f"{other}{': ' if outcome.reason else ''}{outcome.reason}"


def explain_shadow(outcome: UpdateOutcome, channel: str) -> str:
    """Return why the serving release still serves while the channel's release is in shadow mode."""
    offered = _explain_offer(outcome, channel, outcome.release)
    return f"{offered}, which is compared with it first ([shadow])"


def explain_unrecorded(outcome: UpdateOutcome, channel: str) -> str:
    """Return why another release serves than the channel's, which `slots.json` names as current."""
    offered = _explain_offer(outcome, channel, outcome.release)
    return f"{offered}, rolled back; the disk could not record that"


def explain_problem(outcome: UpdateOutcome, announced: str | None, channel: str) -> str | None:
    """Return the error of an update check that reached a decision; None if there is none."""
    if outcome.decision is Decision.REFUSED:
        return f"release {outcome.release} was refused: {outcome.reason}"
    if outcome.decision is Decision.POSTPONED:
        return f"release {outcome.release} could not be tried: {outcome.reason}"
    if announced is not None and announced not in outcome.named:
        return (
            f"release {announced} was announced, but the signed channel {channel} "
            f"points to {outcome.release}; the announcement is not followed"
        )
    return None


def _explain_offer(outcome: UpdateOutcome, channel: str, release: str) -> str:
    if outcome.rollout and outcome.release != outcome.steady:
        return f"rollout {outcome.rollout} of channel {channel} has {release} for this device"
    return f"channel {channel} points to {release}"


def _explain_others(outcome: UpdateOutcome) -> str:
    """Return what the rollout means for a device that has the steady release."""
    if not outcome.rollout or outcome.release != outcome.steady:
        return ""
    if outcome.intended != outcome.steady:
        return f"; {outcome.intended} follows, by rollout {outcome.rollout}"
    if outcome.rollout_release == outcome.steady:
        return ""
    meaning = "is taken back from all devices" if outcome.is_taken_back else "is for other devices so far"
    return f"; {outcome.rollout_release} {meaning} (rollout {outcome.rollout})"
