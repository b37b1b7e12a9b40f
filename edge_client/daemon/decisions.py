"""Fields of the status that follow from the decision of an update check, and from what serves by now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_client.update.decision import RETRY, Decision

if TYPE_CHECKING:
    from edge_client.contract.messages import DeviceStatus
    from edge_client.update.decision import UpdateOutcome

# Value of the status field `decision` until an update check has decided.
UNDECIDED = ""


def name_of(decision: Decision) -> str:
    """Return the value of the status field `decision`."""
    return decision.name.lower()


def rollout_fields(outcome: UpdateOutcome) -> dict[str, Any]:
    """Return the fields that say what is signed for this device, whatever becomes of it."""
    waits_for = RETRY if outcome.decision is Decision.POSTPONED else outcome.waits_for
    return {
        "rollout": outcome.rollout,
        "steady": outcome.steady or None,
        "intended": outcome.intended or None,
        "waits_for": waits_for,
    }


def next_look_s(outcome: UpdateOutcome) -> float | None:
    """Return the seconds until another check may find more to do; None: nothing is known of it."""
    return 0.0 if outcome.is_first_of_two else outcome.wait_s


def decision_of(outcome: UpdateOutcome, serving: str | None, shadow: str | None) -> str:
    """Return the decision of an update check for the status.

    Args:
        outcome: Its outcome.
        serving: Release that serves by now.
        shadow: Release in shadow mode by now.
    """
    if outcome.decision not in {Decision.SERVES, Decision.INSTALL}:
        return name_of(outcome.decision)
    if serving == outcome.release:
        return name_of(Decision.SERVES)
    if shadow == outcome.release:
        return name_of(Decision.INSTALL)
    return UNDECIDED


def decision_after_verdict(
    status: DeviceStatus, changes: dict[str, Any], serving: str | None, shadow: str | None
) -> dict[str, Any]:
    """Return the fields that follow from a verdict, on the offered release or the one before.

    Args:
        status: The status before.
        changes: Fields of the status that the verdict itself changed.
        serving: Release that serves by now.
        shadow: Release in shadow mode by now.
    """
    latest = status.latest
    if latest is None:
        return {}
    if changes.get("refused") == latest:
        return {"decision": name_of(Decision.REFUSED), "offered": None}
    if serving == latest:
        return {"decision": name_of(Decision.SERVES), "offered": None}
    # It neither serves nor is compared: a rollback ended its shadow mode, or could not be recorded.
    open_decisions = {name_of(Decision.INSTALL), name_of(Decision.SERVES), UNDECIDED}
    if shadow != latest and status.decision in open_decisions:
        return {"decision": UNDECIDED, "offered": None}
    return {}
