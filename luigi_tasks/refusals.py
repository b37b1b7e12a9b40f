"""Tells who listens to the fleet's events that the gate did not let a candidate pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luigi_tasks.gate.records import THIN

if TYPE_CHECKING:
    from luigi_tasks.gate.records import Evaluation
    from luigi_tasks.workspace import Workspace


def tell_refusal(workspace: Workspace, evaluation: Evaluation) -> None:
    """Tell of a candidate that was refused, or held; what cannot be told fails no run."""
    from luigi_tasks.fleet.events import gate_event, tell_gate  # noqa: PLC0415 - most runs refuse nothing

    settings, is_refused = workspace.settings, evaluation.verdict.outcome != THIN
    event = gate_event(settings, evaluation.release, evaluation.in_words(), is_refused=is_refused)
    tell_gate(settings, workspace.repository, event)
