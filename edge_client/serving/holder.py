"""Holder of the serving classifier, which changes between two frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_client.inference.classifier import Classifier


class ClassifierHolder:
    """Holds the classifier that serves.

    One thread reads `current` once for each frame; another may call `swap` at any time. The change is
    one assignment of a reference, so a frame sees the old classifier or the new one, never a mix.
    The old one is freed when the frame that uses it is done.
    """

    def __init__(self, classifier: Classifier | None = None) -> None:
        self._current = classifier

    @property
    def current(self) -> Classifier | None:
        """The serving classifier; None before the first release."""
        return self._current

    def swap(self, new: Classifier) -> None:
        """Warm `new` next to the serving classifier, then serve it.

        Raises: DeviceError if `new` cannot run; the old one then still serves.
        """
        new.warm()
        self._current = new
