"""Tells the fleet's receivers (broker, webhooks) of what people did on the board."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from luigi_tasks.board.access.audit import Act
    from luigi_tasks.settings.values import PipelineSettings


def tell_act(settings: PipelineSettings, act: Act) -> None:
    """Tell of an act, once; what is not taken stands in the log. It blocks."""
    from luigi_tasks.fleet.events import FleetEvent, tell_once  # noqa: PLC0415 - imports python-tuf, paho

    known = {"who": act.who, "role": act.role, "why": act.why}
    data = {"fleet": settings.broker.fleet, **act.facts, **known}
    event = FleetEvent(id=f"board-{secrets.token_hex(10)}", type=act.what, timestamp=act.at, data=data)
    tell_once(settings, event)
