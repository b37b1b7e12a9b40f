"""The releases that a channel has on this device, to look at: which serves, which waits, which failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from edge_client.serving.holder import ClassifierHolder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_client.serving.shadow import ShadowRelease
    from edge_client.update.failures import FailureRecord
    from edge_client.update.slots import PatientSlots


class HeldLabels(NamedTuple):
    """Labels of a channel's releases.

    Attributes:
        serving: Of the release that serves.
        shadow: Of the one in shadow mode; empty without one.
    """

    serving: tuple[str, ...]
    shadow: tuple[str, ...]


class HeldReleases:
    """The slots of a channel, and what is loaded of them."""

    def __init__(self, slots: PatientSlots) -> None:
        self._slots = slots
        self._holder = ClassifierHolder()
        self._shadow: ShadowRelease | None = None
        self._fault = ""

    @property
    def serves(self) -> bool:
        """Whether a release serves."""
        return self._holder.current is not None

    @property
    def release(self) -> str | None:
        """The serving release."""
        return None if self._holder.current is None else self._holder.current.release

    @property
    def labels(self) -> HeldLabels | None:
        """Labels of the releases; None if none serves."""
        current, shadow = self._holder.current, self._shadow
        if current is None:
            return None
        return HeldLabels(current.labels, shadow.classifier.labels if shadow is not None else ())

    @property
    def fault(self) -> str:
        """Why the current release does not serve, for people; empty if it does, or if there is none."""
        return self._fault

    @property
    def serving_since(self) -> str | None:
        """When the serving release was activated, UTC; None if that is unknown, or no release serves.

        Also unknown after a rollback that the disk could not record: `slots.json` names the broken release.
        """
        return self._slots.serving_since if self.serves and self.release == self._slots.current else None

    @property
    def previous(self) -> str | None:
        """The release kept for a rollback."""
        return self._slots.previous

    @property
    def on_probation(self) -> bool:
        """Whether the serving release is on probation."""
        return self._slots.probation is not None

    @property
    def probation_release(self) -> str | None:
        """The release on probation, which may be unable to serve now."""
        return self._slots.current if self.on_probation else None

    @property
    def failures(self) -> Mapping[str, FailureRecord]:
        """Records of the releases that failed on this device, in their order."""
        return self._slots.failures.records

    @property
    def shadow_release(self) -> str | None:
        """The release in shadow mode."""
        return None if self._shadow is None else self._shadow.comparison.release

    @property
    def newest(self) -> str | None:
        """The release that was installed last: the one in shadow mode, else the current one."""
        return self.shadow_release or self._slots.current

    @property
    def last_refused(self) -> str | None:
        """The release that was refused last on this device."""
        return next(reversed(self._slots.refused), None)

    @property
    def last_postponed(self) -> str | None:
        """The release whose try failed last, and is repeated."""
        waiting = self._slots.failures.waiting()
        return next((one for one in reversed(self._slots.failures.records) if one in waiting), None)

    @property
    def retry_at(self) -> str | None:
        """When a release whose try failed is tried again, UTC, ISO 8601; None if none is."""
        in_use = {self._slots.current, self._slots.shadow.release if self._slots.shadow else None}
        return self._slots.failures.without(in_use).retry_at
