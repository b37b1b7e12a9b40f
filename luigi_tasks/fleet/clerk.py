"""Beside the hearing: who is in the fleet, and the snapshots.

The registry is asked every half minute. What it said last is kept beside the database: a collector that
starts while the bucket is away hears the devices that it knows, with their keys. One that never saw it
hears nothing until it does: without it, nobody's signature could be verified.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.errors import EdgeError, SettingsError, TransportError
from edge_client.disk import write_durably
from luigi_tasks.fleet.database import DamagedError, DatabaseBusyError
from luigi_tasks.fleet.database_reader import DatabaseReader
from luigi_tasks.fleet.records import EnrolledDevice, SnapshotHead
from luigi_tasks.fleet.registry import NoRegistryError, Registry
from luigi_tasks.fleet.snapshots import (
    SILENT_AFTER,
    SnapshotPolicy,
    public_key_of,
    thin_snapshots,
    write_snapshot,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from securesystemslib.signer import Signer

    from luigi_tasks.fleet.collector import Collector
    from luigi_tasks.settings.values import FleetSettings
    from luigi_tasks.storage.store import Store

logger = logging.getLogger("edge-fleet")

# Whoever is enrolled is known to the collector so many seconds later.
_REGISTRY_S = 30.0
_THIN_S = 3600.0
_NOBODY = Registry(version=0, devices={}, collectors={})


@dataclasses.dataclass(frozen=True)
class Office:
    """What a clerk works with.

    Attributes:
        store: The bucket.
        load_registry: Returns the registry; it is given the one before.
        signer: The collector's key.
    """

    store: Store
    load_registry: Callable[[Registry | None], Registry]
    signer: Signer


class Clerk:
    """Keeps a collector's registry up to date, and writes its snapshots.

    Args:
        collector: The collector.
        office: What the clerk works with.
    """

    def __init__(self, collector: Collector, office: Office) -> None:
        self._collector = collector
        self._office = office
        self._registry: Registry | None = None
        self._told = ""
        self._thinned_at = 0.0

    def open(self) -> None:
        """Tell the collector who is in the fleet; wait for the registry if nothing is known yet.

        Raises: TrustError, SettingsError, InputError if the registry cannot be used and was not seen before.
        """
        if self._look() or self._remember():
            return
        while not self._collector.stopping.wait(_REGISTRY_S):
            if self._look():
                return

    def tend(self) -> None:
        """Refresh the registry and write snapshots until the collector stops."""
        every_s = self._collector.scope.settings.snapshot_s
        due, stopping = time.monotonic() + every_s, self._collector.stopping
        while not stopping.wait(max(0.0, min(_REGISTRY_S, due - time.monotonic()))):
            with self._told_faults("the devices that were known before count on"):
                self._refresh()
            if time.monotonic() >= due:
                due = max(due + every_s, time.monotonic())
                with self._told_faults("reports are kept here; the next snapshot has them"):
                    self.write_snapshot()

    def write_snapshot(self) -> str:
        """Write a snapshot; return the key of its rows.

        Raises: TransportError, SettingsError; DatabaseBusyError, DamagedError.
        """
        collector, scope = self._collector, self._collector.scope
        listening_since = collector.listening_since
        now = scope.clock()
        with DatabaseReader(scope.database, scope.keeping) as reader:
            head = SnapshotHead(
                fleet=scope.fleet,
                taken_at=now,
                collector=scope.settings.collector,
                listening_since=now if listening_since is None else listening_since,
                period_s=float(scope.settings.period_s),
                devices=reader.count_rows(),
                registered=len(collector.intake.members),
                heard=reader.count_heard(now, SILENT_AFTER),
                rejected=collector.intake.rejections.by_reason(),
            )
            rows = reader.rows(now, scope.settings.sampled_devices)
            key = write_snapshot(self._office.store, head, rows, self._office.signer)
        logger.info(
            "%s: %d rows; %d of %d registered devices heard; %d reports so far; rejected: %s",
            self._office.store.url(key),
            head.devices,
            head.heard,
            head.registered,
            collector.reports,
            ", ".join(f"{reason} {number}" for reason, number in head.rejected.items()) or "none",
        )
        self._thin(now)
        return key

    def _thin(self, now: float) -> None:
        if now - self._thinned_at < _THIN_S:
            return
        s = self._collector.scope.settings
        policy = SnapshotPolicy(s.keep_all_h, s.keep_hourly_days, s.keep_daily_days)
        thin_snapshots(self._office.store, s.collector, policy, now)
        self._thinned_at = now

    def _look(self) -> bool:
        """Read the registry; return whether it could be reached."""
        try:
            self._refresh()
        except (TransportError, NoRegistryError) as e:
            logger.warning("%s. Who is in the fleet is not known yet", e)
            return False
        return True

    def _refresh(self) -> None:
        try:
            registry = self._office.load_registry(self._registry)
        except NoRegistryError as e:
            if (self._registry is not None and self._registry.version) or self._remember():
                raise  # there was one: that it is gone does not mean that nobody is in the fleet
            self._tell(f"{e}. Devices are shown meanwhile, and none of them counts")
            registry = _NOBODY
        if self._registry is not None and registry.version == self._registry.version:
            return
        self._registry = registry
        self._collector.set_members(registry.devices)
        self._check_own_key(registry)
        with self._told_faults("the registry is kept in memory alone"):
            write_durably(self._memory, msgspec.msgpack.encode(tuple(registry.devices.values())))

    def _remember(self) -> bool:
        """Take the registry as it was when it was last read; return whether there is one."""
        try:
            devices = msgspec.msgpack.decode(self._memory.read_bytes(), type=tuple[EnrolledDevice, ...])
        except (OSError, msgspec.DecodeError):
            return False
        logger.warning("the registry as it was last read counts: %d devices", len(devices))
        self._collector.set_members({one.device: one for one in devices})
        return True

    @property
    def _memory(self) -> Path:
        database = self._collector.scope.database
        return database.with_name(f"{database.name}.registry")

    def _check_own_key(self, registry: Registry) -> None:
        name = self._collector.scope.settings.collector
        pem = registry.collectors.get(name, "")
        if not pem or self._office.signer.public_key.keyid not in public_key_of(pem, name):
            self._tell(
                f"the registry has {'another' if pem else 'no'} key of collector {name}: nobody reads these "
                f"snapshots. Name this one's: `edge-fleet collector-key {name}`, where the rollouts key is"
            )

    def _tell(self, text: str) -> None:
        """Log what goes on for long once."""
        if text != self._told:
            self._told = text
            logger.warning("%s", text)

    @contextlib.contextmanager
    def _told_faults(self, meanwhile: str) -> Iterator[None]:
        try:
            yield
        except (EdgeError, DatabaseBusyError, DamagedError) as e:
            if isinstance(e, DamagedError):
                self._collector.note_damage(str(e))
            logger.warning("%s. Meanwhile %s", e, meanwhile)


def open_collector_key(settings: FleetSettings) -> Signer:
    """Return the signer of a collector's snapshots.

    Raises: SettingsError if there is no key.
    """
    from luigi_tasks.release.key_files import (  # noqa: PLC0415 - readers do without
        PASSPHRASE_VARIABLE,
        Passphrases,
        open_key,
        read_passphrase,
    )

    path = Path(settings.collector_key_file).expanduser()
    if not path.exists():
        msg = (
            f"[fleet] collector_key_file {path.absolute()}: missing. Make it where the rollouts key is: "
            f"`edge-fleet collector-key {settings.collector} --out FILE`, and put FILE here"
        )
        raise SettingsError(msg)
    known = read_passphrase("", PASSPHRASE_VARIABLE)
    return open_key(path, Passphrases((known,) if known else (), way_out=f"give it in {PASSPHRASE_VARIABLE}"))
