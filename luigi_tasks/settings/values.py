"""Frozen settings of the pipeline. No Luigi: every step gets these values."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from luigi_tasks.settings.rollout import RolloutSettings

PICTURES_COME_FROM = (
    "a folder that holds one folder of pictures a class, s3://bucket/prefix, a zip or tar archive (a file, "
    "s3://bucket/pictures.zip, or http(s) with [dataset] sha256), or a preset (preset:digits, preset:flowers)"
)
NO_PICTURES = (
    "[dataset] url is empty, and nothing else names pictures: give --pictures or [dataset] url, "
    f"{PICTURES_COME_FROM}"
)


# Architectures, each with the widths that Keras has ImageNet weights for.
IMAGENET_WIDTHS = {
    "mobilenet_v1": (0.25, 0.5, 0.75, 1.0),
    "mobilenet_v2": (0.35, 0.5, 0.75, 1.0, 1.3, 1.4),
    "mobilenet_v3_small": (0.75, 1.0),
    "mobilenet_v3_large": (0.75, 1.0),
}
ARCHITECTURES = tuple(IMAGENET_WIDTHS)


# Quantization schemes, from the coarsest to the finest: fallbacks are later ones.
SCHEMES = ("int8", "int8_wide", "mixed", "dynamic", "float16")


# `int8_wide` calibrates on so many times the pictures: wider ranges, which new pictures exceed less often.
WIDE_CALIBRATION = 4


MODES = ("head", "finetune")


ADDRESSING_STYLES = ("auto", "path", "virtual")


# What becomes of a candidate for which there is not enough evidence: `hold_replacement` publishes it where
# nothing is deployed yet.
THIN_EVIDENCE = ("hold_replacement", "publish", "hold")


# Below so many training pictures, more computation per picture is cheap: docs/decisions/0004-features.md.
SMALL_SET_PICTURES = 1000


# A head on a tuned backbone, which has learned from copies itself, gains nothing from more:
# docs/decisions/0013-recipes.md.
TUNED_COPIES = 1.0


# Float features take twice as long as int8 features, and those of some pictures are enough: in five folds of
# sign digits 0.9733 in int8 and 0.9700 in float, against 0.9737 and 0.9690 with a quarter.
FLOAT_SHARE = 0.15


@dataclasses.dataclass(frozen=True)
class DatasetSettings:
    """The dataset, and the limits on its pictures."""

    url: str
    sha256: str
    cache_dir: Path
    min_images_per_class: int
    holdout_percent: float
    max_left_out_percent: float
    max_unpacked_bytes: int
    shard_pictures: int
    group: str
    burst_s: float
    near_duplicates: bool
    profile: str = ""
    requester_pays: bool = False


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """The network."""

    architecture: str
    alpha: float
    input_size: int
    grid: int
    weights: str


@dataclasses.dataclass(frozen=True)
class Portions:
    """How much is computed per training picture.

    Attributes:
        copies: Augmented copies of each picture; 0.5: one copy of every second picture.
        float_share: Share of the training pictures whose float features are computed too.
    """

    copies: float
    float_share: float


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """Hyperparameters of the training."""

    mode: str
    epochs: int
    batch_size: int
    learning_rate: float
    augmented_copies: float
    small_set_copies: float
    horizontal_flip: bool
    hidden_units: int
    dropout: float
    weight_decay: float
    label_smoothing: float
    finetune_epochs: int
    finetune_rate: float
    warm_start: bool
    cluster: str
    seed: int

    def portions(self, train_pictures: int) -> Portions:
        """Return how much is computed for a training set of this size."""
        if train_pictures >= SMALL_SET_PICTURES:
            return Portions(self.augmented_copies, FLOAT_SHARE)
        copies = self.small_set_copies
        return Portions(min(copies, TUNED_COPIES) if self.mode == "finetune" else copies, 1.0)

    def shown_copies(self, train_pictures: int) -> float:
        """Return in how many copies a backbone that is tuned on so many pictures is shown each."""
        small = train_pictures < SMALL_SET_PICTURES
        return self.small_set_copies if small else self.augmented_copies


@dataclasses.dataclass(frozen=True)
class QuantizationSettings:
    """Quantization of the TFLite file."""

    scheme: str
    fallbacks: str
    calibration_pictures: int
    calibration: str

    def schemes_in_order(self) -> tuple[str, ...]:
        """Return the configured scheme, then its fallbacks in the order in which they are tried."""
        later = SCHEMES[SCHEMES.index(self.scheme) + 1 :]
        wanted = split_names(self.fallbacks)
        return (self.scheme, *(one for one in later if one in wanted))

    def calibrated_on(self, scheme: str) -> int:
        """Return the number of calibration pictures of a scheme."""
        return self.calibration_pictures * (WIDE_CALIBRATION if scheme == "int8_wide" else 1)


@dataclasses.dataclass(frozen=True)
class GateSettings:
    """Limits that a candidate must meet."""

    min_accuracy: float
    max_float_drop_points: float
    max_class_drop_points: float
    max_champion_drop_points: float
    champion_margin_points: float
    min_class_recall: float
    min_class_holdout: int
    thin_evidence: str
    replace_classes: bool
    max_model_bytes: int


@dataclasses.dataclass(frozen=True)
class StoreSettings:
    """S3 bucket or folder that holds targets and releases."""

    url: str
    endpoint_url: str
    region: str
    checksums: str
    conditional_writes: bool
    addressing_style: str = "auto"
    ca_file: str = ""
    profile: str = ""


@dataclasses.dataclass(frozen=True)
class TrustSettings:
    """Signing keys and lifetimes of signatures."""

    root: Path
    keys: str
    timestamp_days: int
    snapshot_days: int
    targets_days: int
    keep_releases: int
    memory_dir: str = ""
    passphrase_file: str = ""

    @property
    def memory_folder(self) -> Path:
        """Folder of this machine's memory of what was published."""
        return Path(self.memory_dir).expanduser() if self.memory_dir else self.root.parent / "memory"


@dataclasses.dataclass(frozen=True)
class BrokerSettings:
    """The MQTT broker that announcements go to."""

    host: str
    port: int
    fleet: str
    username: str
    password_file: str
    tls: bool
    ca_file: str
    timeout_s: float
    certificate_file: str = ""
    key_file: str = ""
    alpn: str = ""


@dataclasses.dataclass(frozen=True)
class ReleaseSettings:
    """The channel that a release is published on, and the devices that may install it."""

    channel: str
    share_percent: float
    device_class: str
    self_test_pictures: int
    patches: int
    precision: float
    strangers: bool


@dataclasses.dataclass(frozen=True)
class FleetSettings:
    """The collector, and who is told what happens in the fleet."""

    collector: str = "collector"
    collector_key_file: str = "keys/collector.pem"
    database_file: str = "~/.local/state/edge-fleet/collector.sqlite"
    share_group: str = ""
    old_statuses: bool = True
    period_s: int = 3600
    keep_periods: int = 96
    snapshot_s: float = 300.0
    sampled_devices: int = 2000
    keep_all_h: float = 6.0
    keep_hourly_days: float = 7.0
    keep_daily_days: float = 90.0
    heartbeat_s: float = 0.0
    max_reports_per_min: int = 120
    max_unknown_devices: int = 10000
    webhooks_file: str = ""


@dataclasses.dataclass(frozen=True)
class BoardSettings:
    """The web application."""

    host: str = "127.0.0.1"
    port: int = 8090
    url: str = ""
    state_dir: str = "~/.local/state/edge-fleet/board"
    anonymous: str = "viewer"
    look_s: float = 1.0
    luigid_url: str = ""
    hosts: str = ""
    session_h: float = 12.0
    trusted_proxies: str = ""
    proxy_user_header: str = ""
    proxy_groups_header: str = ""
    operators: str = ""
    labellers: str = ""
    viewers: str = ""


@dataclasses.dataclass(frozen=True)
class PipelineSettings:
    """Settings of all sections."""

    dataset: DatasetSettings
    model: ModelSettings
    training: TrainingSettings
    quantization: QuantizationSettings
    gate: GateSettings
    store: StoreSettings
    trust: TrustSettings
    broker: BrokerSettings
    release: ReleaseSettings
    fleet: FleetSettings
    rollout: RolloutSettings = dataclasses.field(default_factory=RolloutSettings)
    board: BoardSettings = dataclasses.field(default_factory=BoardSettings)

    @property
    def tunes(self) -> bool:
        """Whether the backbone itself is trained: fine-tuning, or a network without weights."""
        return self.training.mode == "finetune" or self.model.weights == "none"


def split_names(names: str) -> tuple[str, ...]:
    """Split a list of names at its commas."""
    return tuple(one.strip() for one in names.split(",") if one.strip())


FLOAT = "float"
