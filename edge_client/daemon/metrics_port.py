"""Serves the metrics if the settings name a port; without extra or port, only the metrics are missing."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from edge_client.contract.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_client.reporting.metrics import MetricsServer
    from edge_client.reporting.status import StatusBoard
    from edge_client.settings.reporting import MetricsSettings
    from edge_client.sinks.delivery import Counter

logger = logging.getLogger(__name__)


class MetricsPort(NamedTuple):
    """What serves metrics.

    Attributes:
        server: The server; None without one.
        counters: What counts results for it.
        fault: Why there are none though they are wanted; None if all is well.
    """

    server: MetricsServer | None = None
    counters: tuple[Counter, ...] = ()
    fault: str | None = None


def open_metrics(settings: MetricsSettings, boards: Sequence[StatusBoard]) -> MetricsPort:
    """Serve the statuses of these boards."""
    if not settings.port:
        return MetricsPort()
    try:
        from edge_client.reporting.metrics import PredictionCounter, serve  # noqa: PLC0415 - extra, 4 MB
    except SettingsError as e:
        # An upgrade from a version that needed no library must not stop the camera.
        logger.error("%s", e)  # noqa: TRY400 - one line, no traceback
        return MetricsPort(fault=str(e))
    counter = PredictionCounter()
    try:
        server = serve(settings, lambda: [board.status for board in boards], counter)
    except SettingsError as e:
        # Another program may have the port for now: the camera serves without metrics.
        logger.error("%s; no metrics until the next start", e)  # noqa: TRY400 - one line, no traceback
        return MetricsPort(fault=str(e))
    return MetricsPort(server, (counter,))
