"""What follows when the gate lets no candidate pass: it is told, and nothing waits to be rolled out."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from edge_client.contract.errors import EdgeError
from luigi_tasks.gate.records import THIN
from luigi_tasks.logs import LUIGI_LOGGER

if TYPE_CHECKING:
    from luigi_tasks.gate.records import Evaluation
    from luigi_tasks.workspace import Workspace

logger = logging.getLogger(LUIGI_LOGGER)


def tell_refusal(workspace: Workspace, evaluation: Evaluation) -> None:
    """Tell of a candidate that was refused, or held; what cannot be told fails no run."""
    from luigi_tasks.fleet.events import gate_event, tell_gate  # noqa: PLC0415 - most runs refuse nothing

    settings, is_refused = workspace.settings, evaluation.verdict.outcome != THIN
    event = gate_event(settings, evaluation.release, evaluation.in_words(), is_refused=is_refused)
    tell_gate(settings, workspace.repository, event)
    try:  # a release that waited was gated again, or its pictures are gone
        workspace.fleet.empty_queue(settings.release.channel)
    except EdgeError as e:
        logger.warning("%s. What waits for a rollout is named on, and the next Deploy decides", e)
