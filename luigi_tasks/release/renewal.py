"""Renewal of signatures before they expire, role by role, on whichever machine has the role's key.

Devices refuse expired metadata. Each role is signed again when half of its lifetime is over, so that a role
with less than a quarter left tells that nobody renews it: the machine that has its key is away.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
from typing import TYPE_CHECKING, Protocol

from edge_client.contract.errors import SettingsError
from edge_client.contract.names import ROLLOUTS_ROLE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from luigi_tasks.release.published import Published, RepositoryState
    from luigi_tasks.settings.values import TrustSettings
    from luigi_tasks.storage.store import Store

logger = logging.getLogger(__name__)

_DAY = datetime.timedelta(days=1)
# Parts of a lifetime: signed again when less than the first is left, told as a fault below the second.
_DUE, _LATE = 0.5, 0.25


@dataclasses.dataclass(frozen=True)
class Freshness:
    """How long a role's published metadata is still valid.

    Attributes:
        role: `timestamp`, `snapshot`, `targets` or `rollouts`.
        days_left: Days until devices refuse it; negative: they do.
        lifetime_days: Days that it is signed for.
    """

    role: str
    days_left: float
    lifetime_days: int

    @property
    def is_due(self) -> bool:
        """Whether it is to be signed again."""
        return self.days_left < self.lifetime_days * _DUE

    @property
    def is_late(self) -> bool:
        """Whether nobody signed it though it was due for long."""
        return self.days_left < self.lifetime_days * _LATE

    def in_words(self) -> str:
        """Return role and time, such as `timestamp 12.5 days`."""
        return f"{self.role} {self.days_left:.{1 if self.days_left < 10 else 0}f} days"


def measure_freshness(
    published: Published, days: TrustSettings, now: datetime.datetime
) -> tuple[Freshness, ...]:
    """Return how fresh each role is, in the order in which they expire; empty where nothing is published.

    Args:
        published: The metadata.
        days: Lifetimes.
        now: Aware, UTC.
    """
    lifetimes = (
        ("timestamp", published.timestamp, days.timestamp_days),
        ("snapshot", published.snapshot, days.snapshot_days),
        ("targets", published.targets, days.targets_days),
        (ROLLOUTS_ROLE, published.rollouts, days.targets_days),
    )
    found = [
        Freshness(role, (metadata.signed.expires - now) / _DAY, lifetime)
        for role, metadata, lifetime in lifetimes
        if metadata is not None
    ]
    return tuple(sorted(found, key=lambda one: one.days_left))


class Renewable(Protocol):
    """A signed repository, as far as its renewal goes."""

    store: Store
    settings: TrustSettings
    now: Callable[[], datetime.datetime]

    def load(self) -> RepositoryState:
        """Return what is published."""

    def needs_renewal(self) -> bool:
        """Whether something is due whose key is here."""

    def renew(self) -> None:
        """Sign it."""


def refresh(repository: Renewable) -> str:
    """Sign again what is due and has its key here; return in words what was done, and what is due when.

    Raises: SettingsError if a role is late whose key is not here, after all others were signed; as
        `ReleaseRepository.renew`.
    """
    done = "nothing is due"
    if repository.needs_renewal():
        before = repository.load().published.versions
        repository.renew()
        after = repository.load().published.versions
        done = f"signed {', '.join(role for role in after if after[role] != before[role])}"
    ages = measure_freshness(repository.load().published, repository.settings, repository.now())
    if not ages:
        return "nothing is published yet"
    words = f"{done}; left: {', '.join(one.in_words() for one in ages)}"
    if late := [one for one in ages if one.is_late]:
        raise SettingsError(explain_late(late, repository.store.url("metadata/")))
    for one in ages:
        if one.is_due:
            logger.warning("%s", explain_late([one], repository.store.url("metadata/")))
    return words


def explain_late(late: Sequence[Freshness], place: str) -> str:
    """Return which roles nobody renews, and the way out."""
    names = ", ".join(one.in_words() for one in late)
    return (
        f"{place}: left until devices refuse what is signed: {names}. The key is not used on this machine: "
        "run `luigi --module luigi_tasks RefreshMetadata` (or `Deploy`) where [trust] keys has it, and let "
        "cron do it there"
    )
