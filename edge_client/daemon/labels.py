"""Watches whether the labels of the settings are labels of the releases, also after an update."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from edge_client.settings.labels import unknown_private, unknown_watched

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from edge_client.serving.held import HeldLabels
    from edge_client.settings.file import Settings

logger = logging.getLogger(__name__)


class LabelWatch:
    """Warnings of labels in [action] and [inbox] that no release has; logged when they change."""

    def __init__(self, settings: Settings, held: Callable[[], Iterable[HeldLabels | None]]) -> None:
        """Prepare.

        Args:
            settings: Settings of the device.
            held: Returns the labels of each channel; None for one that does not serve.
        """
        self._settings = settings
        self._held = held
        self._found: tuple[HeldLabels, ...] = ()
        self._warnings: tuple[str, ...] = ()
        # Status and report ask at once, each in its thread: one that does not wait would be told of nothing.
        self._looking = threading.Lock()

    def warnings(self) -> tuple[str, ...]:
        """Return the warnings; none while a channel does not serve, as its release may have the label."""
        found = tuple(self._held())
        serving = tuple(one for one in found if one is not None)
        if len(serving) != len(found):
            return ()
        with self._looking:
            if serving != self._found:
                self._found = serving
                self._warn([one.serving for one in serving], [one.shadow for one in serving])
            return self._warnings

    def _warn(self, serving: Collection[tuple[str, ...]], shadow: Collection[tuple[str, ...]]) -> None:
        known = set().union(*serving)
        told = (
            unknown_watched(self._settings.action, known),
            unknown_private(self._settings.inbox, known.union(*shadow)),
        )
        before, self._warnings = self._warnings, tuple(one for one in told if one is not None)
        for warning in self._warnings:
            if warning not in before:
                logger.warning("%s", warning)
