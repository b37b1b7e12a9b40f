"""Reports of devices that do not exist, and a collector that hears them without a bucket."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from securesystemslib.signer import CryptoSigner

from edge_client.contract.report import DeviceReport, MachineFacts, ReleaseFigures
from edge_client.contract.signed_report import seal_report
from luigi_tasks.fleet.clerk import Clerk, Office
from luigi_tasks.fleet.collector import Collector, CollectorScope
from luigi_tasks.fleet.records import EnrolledDevice
from luigi_tasks.fleet.registry import Registry
from luigi_tasks.settings.values import FleetSettings

if TYPE_CHECKING:
    from pathlib import Path

    from luigi_tasks.storage.store import Store

FLEET = "shops"
STEADY, NEW = "r1", "r2"


@dataclasses.dataclass
class FakeDevice:
    """A device: each `report` is the next one of it.

    Attributes:
        device: Its id.
        signer: Its key; None: it has none.
        start: Number of its start.
        sequence: Number of its last report.
        frames: Frames that it has classified under the release.
        activated_at: When that was activated.
        fingerprint: Of its machine.
    """

    device: str
    signer: CryptoSigner | None = None
    start: int = 1
    sequence: int = 0
    frames: int = 0
    activated_at: str = "2026-11-27T10:00:00Z"
    fingerprint: str = "a"

    @property
    def topic(self) -> str:
        return f"edge/{FLEET}/devices/{self.device}/report"

    def report(self, **facts: Any) -> DeviceReport:
        self.sequence += 1
        release = facts.get("release", STEADY)
        figures = ReleaseFigures(
            release=release,
            activated_at=self.activated_at,
            seconds=self.frames / 10,
            frames=self.frames,
            latency={"40": self.frames},
            labels={"cat": self.frames},
            probation=facts.pop("probation", ""),
        )
        given: dict[str, Any] = {
            "fleet": FLEET,
            "device": self.device,
            "channel": "stable",
            "start": self.start,
            "sequence": self.sequence,
            "boot_id": f"boot {self.start}",
            "interval_s": 30.0,
            "release": release,
            "steady": STEADY,
            "offered": STEADY,
            "machine": MachineFacts(fingerprint=self.fingerprint),
            "releases": (figures,),
        }
        return DeviceReport(**{**given, **facts})

    def payload(self, **facts: Any) -> bytes:
        return seal_report(self.report(**facts), self.signer)

    def enrolled(self, **facts: Any) -> EnrolledDevice:
        key = pem_of(self.signer) if self.signer else ""
        return EnrolledDevice(device=self.device, **{"key": key, **facts})


@dataclasses.dataclass
class FakeFleet:
    """The registry, as a collector is told of it.

    Attributes:
        devices: Who is in it.
        collector_key: The collector's key.
        version: Grows with each change.
        fault: Raised in the place of an answer.
    """

    devices: dict[str, EnrolledDevice] = dataclasses.field(default_factory=dict)
    collector_key: CryptoSigner = dataclasses.field(default_factory=CryptoSigner.generate_ed25519)
    version: int = 1
    fault: Exception | None = None

    @property
    def collectors(self) -> dict[str, str]:
        return {"collector": pem_of(self.collector_key)}

    def load(self, _known: Registry | None) -> Registry:
        if self.fault is not None:
            raise self.fault
        return Registry(version=self.version, devices=dict(self.devices), collectors=self.collectors)


class Clock:
    """A clock that only the test moves."""

    def __init__(self, now: float = 1_795_820_400.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def make_collector(
    folder: Path, fleet: FakeFleet, store: Store, clock: Clock, **settings: Any
) -> tuple[Collector, Clerk]:
    """A collector with its clerk, which has read the registry."""
    chosen = FleetSettings(**{"database_file": str(folder / "collector.sqlite"), **settings})
    collector = Collector(CollectorScope(chosen, FLEET, clock))
    clerk = Clerk(collector, Office(store, fleet.load, fleet.collector_key))
    clerk.open()
    return collector, clerk


def pem_of(signer: CryptoSigner) -> str:
    """The public half of a key."""
    key = signer._private_key.public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
