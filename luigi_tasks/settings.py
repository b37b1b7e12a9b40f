"""Every pipeline setting: one `luigi.Config` section each, turned into frozen values.

The sections are read from `luigi.cfg` (or `LUIGI_CONFIG_PATH`) and may be overridden on the
command line (`--training-epochs 30`). Steps get the frozen values and never see Luigi.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

import luigi

from edge_client.contract.errors import InputError, SettingsError
from edge_client.contract.names import check_name

ARCHITECTURES = ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large")
# From the smallest loss allowed for to the least: a candidate falls back to later ones.
SCHEMES = ("int8", "int8_wide", "mixed", "dynamic", "float16")
# `int8_wide` calibrates on so many times the pictures: wider ranges, where new pictures exceed the old.
WIDE_CALIBRATION = 4
MODES = ("head", "finetune")
# With fewer training pictures, what a picture gains by costs little: docs/decisions/0004-features.md.
SMALL_SET_PICTURES = 1000
# Float features take twice as long as int8 ones; those of some of the pictures will do: in five folds of
# sign digits 0.9733 in int8 and 0.9700 in float, with a quarter of them 0.9737 and 0.9690.
FLOAT_SHARE = 0.15


@dataclasses.dataclass(frozen=True)
class DatasetSettings:
    """Where pictures come from and what is accepted."""

    url: str
    sha256: str
    cache_dir: Path
    min_images_per_class: int
    holdout_percent: float
    max_broken_pictures: int
    max_unpacked_bytes: int
    batch_pictures: int


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """Which network."""

    architecture: str
    alpha: float
    input_size: int
    grid: int
    weights: str


@dataclasses.dataclass(frozen=True)
class Portions:
    """What is computed of the pictures that are learned from.

    Attributes:
        views: Distorted copies of each; 0.5: one of every second.
        float_share: Share of those whose float features are known.
    """

    views: float
    float_share: float


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """How it learns."""

    mode: str
    epochs: int
    batch_size: int
    learning_rate: float
    augmented_views: float
    small_set_views: float
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
        """Return what is computed for a training set of this size."""
        if train_pictures < SMALL_SET_PICTURES:
            return Portions(self.small_set_views, 1.0)
        return Portions(self.augmented_views, FLOAT_SHARE)


@dataclasses.dataclass(frozen=True)
class QuantizationSettings:
    """How it becomes TFLite."""

    scheme: str
    fallbacks: str
    calibration_pictures: int
    calibration: str

    def ladder(self) -> tuple[str, ...]:
        """Return the scheme, and what to try after it where it loses too much."""
        later = SCHEMES[SCHEMES.index(self.scheme) + 1 :]
        wanted = split_names(self.fallbacks)
        return (self.scheme, *(one for one in later if one in wanted))

    def calibrated_on(self, scheme: str) -> int:
        """Return how many pictures set a scheme's scales."""
        return self.calibration_pictures * (WIDE_CALIBRATION if scheme == "int8_wide" else 1)


@dataclasses.dataclass(frozen=True)
class GateSettings:
    """What a candidate must show."""

    min_accuracy: float
    max_float_drop_points: float
    max_class_drop_points: float
    max_champion_drop_points: float
    max_model_bytes: int


@dataclasses.dataclass(frozen=True)
class StoreSettings:
    """The S3 bucket that holds targets and releases."""

    url: str
    endpoint_url: str
    region: str
    checksums: str
    conditional_writes: bool


@dataclasses.dataclass(frozen=True)
class TrustSettings:
    """Signing keys and how long signatures hold."""

    root: Path
    keys: str
    timestamp_days: int
    snapshot_days: int
    targets_days: int
    keep_releases: int


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


@dataclasses.dataclass(frozen=True)
class ReleaseSettings:
    """Which channel moves, and for how many devices."""

    channel: str
    share_percent: float
    device_class: str
    self_test_pictures: int
    patches: int


@dataclasses.dataclass(frozen=True)
class PipelineSettings:
    """All of them."""

    dataset: DatasetSettings
    model: ModelSettings
    training: TrainingSettings
    quantization: QuantizationSettings
    gate: GateSettings
    store: StoreSettings
    trust: TrustSettings
    broker: BrokerSettings
    release: ReleaseSettings


class dataset(luigi.Config):  # noqa: N801 - the class name is the section's name in luigi.cfg
    """Section [dataset]."""

    url = luigi.Parameter(
        default="digits",
        description="folder, s3://bucket/prefix, http(s) zip or tar archive, one folder a class; "
        "or a preset: digits, flowers",
    )
    sha256 = luigi.Parameter(default="", description="hex digest of an http(s) archive; required for one")
    cache_dir = luigi.Parameter(
        default="~/.cache/edge-pipeline", description="local folder for unpacked archives and caches"
    )
    min_images_per_class = luigi.IntParameter(default=15, description="fewer stop the run")
    holdout_percent = luigi.FloatParameter(
        default=20.0, description="share of pictures, by content hash, kept from training for the gate"
    )
    max_broken_pictures = luigi.IntParameter(
        default=0, description="undecodable pictures that are left out with a warning; more stop the run"
    )
    max_unpacked_bytes = luigi.IntParameter(
        default=20_000_000_000, description="an archive that unpacks to more is refused"
    )
    batch_pictures = luigi.IntParameter(
        default=1000, description="pictures that one task reads; workers share the tasks"
    )


class model(luigi.Config):  # noqa: N801
    """Section [model]."""

    architecture = luigi.ChoiceParameter(
        default="mobilenet_v2", choices=ARCHITECTURES, description="network family"
    )
    alpha = luigi.FloatParameter(default=1.0, description="width multiplier, as in Keras applications")
    input_size = luigi.IntParameter(default=160, description="input height and width, pixels")
    grid = luigi.IntParameter(
        default=2,
        description="the head also sees a layer before the top, averaged over grid x grid fields of the "
        "picture; 0: the top alone",
    )
    weights = luigi.Parameter(
        default="imagenet", description="imagenet (downloaded by Keras), none, or path of a no-top .h5 file"
    )


class training(luigi.Config):  # noqa: N801
    """Section [training]."""

    mode = luigi.ChoiceParameter(
        default="head",
        choices=MODES,
        description="head: frozen backbone, seconds to minutes; finetune: the backbone's top too "
        "(all of it where weights are none)",
    )
    epochs = luigi.IntParameter(default=30, description="most passes over the training pictures")
    batch_size = luigi.IntParameter(default=128, description="pictures a step")
    learning_rate = luigi.FloatParameter(default=0.001, description="Adam's peak rate, cosine decay to 0")
    augmented_views = luigi.FloatParameter(
        default=0.5,
        description="distorted copies of each training picture that are learned from too, 0.5: one of every "
        "second; more where cameras differ",
    )
    small_set_views = luigi.FloatParameter(
        default=4.0,
        description="the same for the head where fewer than 1,000 pictures are learned from: it gains most "
        "there, and it costs seconds",
    )
    horizontal_flip = luigi.BoolParameter(
        default=True,
        parsing=luigi.BoolParameter.EXPLICIT_PARSING,
        description="whether a mirror image keeps its class (not so for digits and text)",
    )
    hidden_units = luigi.IntParameter(
        default=0, description="width of the head's hidden layer; 0: none, and updates of a few kB"
    )
    dropout = luigi.FloatParameter(default=0.0, description="share of head inputs dropped while training")
    weight_decay = luigi.FloatParameter(default=0.01, description="pull of the head's weights towards 0")
    label_smoothing = luigi.FloatParameter(default=0.05, description="0 to below 1")
    finetune_epochs = luigi.IntParameter(
        default=5, description="passes of the backbone's upper part over the training pictures"
    )
    finetune_rate = luigi.FloatParameter(
        default=0.001, description="its peak rate, warmed up, then cosine decay to 0"
    )
    warm_start = luigi.BoolParameter(
        default=False,
        parsing=luigi.BoolParameter.EXPLICIT_PARSING,
        description="finetune goes on from the deployed release's backbone; the model then depends on its "
        "ancestors too",
    )
    cluster = luigi.Parameter(
        default="",
        description="host:port of each machine that tunes, the one that runs luigi first; empty: alone",
    )
    seed = luigi.IntParameter(default=1, description="same seed and data: same model")


class quantization(luigi.Config):  # noqa: N801
    """Section [quantization]."""

    scheme = luigi.ChoiceParameter(default="int8", choices=SCHEMES, description="weights and activations")
    fallbacks = luigi.Parameter(
        default="int8_wide, mixed, float16",
        description="schemes to try, in the order of the list above, while the one before loses more against "
        "float than [gate] allows; empty: none",
    )
    calibration_pictures = luigi.IntParameter(
        default=200, description="training pictures, balanced over classes, that set int8 ranges"
    )
    calibration = luigi.Parameter(
        default="",
        description="id of a release whose calibration set is taken, to make that release again; empty: that "
        "of the deployed one while it fits, else a new one",
    )


class gate(luigi.Config):  # noqa: N801
    """Section [gate]."""

    min_accuracy = luigi.FloatParameter(default=0.8, description="hold-out accuracy of the .tflite file, 0-1")
    max_float_drop_points = luigi.FloatParameter(
        default=2.0, description="largest loss against the float model, percentage points"
    )
    max_class_drop_points = luigi.FloatParameter(
        default=10.0,
        description="largest loss of one class against the float model; a single picture more is forgiven",
    )
    max_champion_drop_points = luigi.FloatParameter(
        default=0.5, description="largest loss against the deployed model on the same pictures"
    )
    max_model_bytes = luigi.IntParameter(default=8_000_000, description="size budget of model.tflite")


class store(luigi.Config):  # noqa: N801
    """Section [store]; credentials come from boto3's usual chain (environment, profile, role)."""

    url = luigi.Parameter(
        default="s3://edge-models", description="s3://bucket/prefix that holds targets and releases"
    )
    endpoint_url = luigi.Parameter(default="", description="S3 endpoint; empty: AWS")
    region = luigi.Parameter(default="", description="region; empty: boto3's default")
    checksums = luigi.ChoiceParameter(
        default="when_required",
        choices=("when_required", "when_supported"),
        description="boto3's CRC trailers; many endpoints other than AWS lack them",
    )
    conditional_writes = luigi.BoolParameter(
        default=True,
        parsing=luigi.BoolParameter.EXPLICIT_PARSING,
        description="If-Match writes of the pointer, so that two publishers cannot undo each other",
    )


class trust(luigi.Config):  # noqa: N801
    """Section [trust]; `edge-keys make` creates what it names."""

    root = luigi.Parameter(default="keys/device/root.json", description="trusted root metadata")
    keys = luigi.Parameter(
        default="keys/pipeline",
        description="folder with targets.pem, snapshot.pem and timestamp.pem, or a securesystemslib "
        "URI with {role} in it (KMS, HSM)",
    )
    timestamp_days = luigi.IntParameter(
        default=14, description="devices refuse a store that shows nothing newer for so long"
    )
    snapshot_days = luigi.IntParameter(default=90, description="lifetime of snapshot metadata")
    targets_days = luigi.IntParameter(default=365, description="lifetime of targets metadata")
    keep_releases = luigi.IntParameter(
        default=50, description="releases that stay signed; older ones that no channel names are dropped"
    )


class broker(luigi.Config):  # noqa: N801
    """Section [broker]."""

    host = luigi.Parameter(default="127.0.0.1", description="MQTT broker")
    port = luigi.IntParameter(default=1883, description="its port (TLS: usually 8883)")
    fleet = luigi.Parameter(default="fleet", description="first part of all topics after edge/")
    username = luigi.Parameter(default="", description="empty: anonymous")
    password_file = luigi.Parameter(default="", description="file whose first line is the password")
    tls = luigi.BoolParameter(
        default=False, parsing=luigi.BoolParameter.EXPLICIT_PARSING, description="MQTT over TLS"
    )
    ca_file = luigi.Parameter(default="", description="CA certificate; empty: the system's")
    timeout_s = luigi.FloatParameter(default=10.0, description="limit for connect, publish and read back")


class release(luigi.Config):  # noqa: N801
    """Section [release]."""

    channel = luigi.Parameter(default="stable", description="channel that Deploy moves")
    share_percent = luigi.FloatParameter(default=100.0, description="share of devices that may take it")
    device_class = luigi.Parameter(
        default="", description="only devices of this [device] device_class take the release; empty: all do"
    )
    self_test_pictures = luigi.IntParameter(
        default=5, description="signed hold-out pictures that a device answers before activation"
    )
    patches = luigi.IntParameter(
        default=3,
        description="earlier releases that a patch leads from, a few kB instead of the model",
    )


def load_settings() -> PipelineSettings:
    """Read all sections and check them.

    Raises: SettingsError that lists every fault at once.
    """
    settings = PipelineSettings(
        dataset=_section(DatasetSettings, dataset()),
        model=_section(ModelSettings, model()),
        training=_section(TrainingSettings, training()),
        quantization=_section(QuantizationSettings, quantization()),
        gate=_section(GateSettings, gate()),
        store=_section(StoreSettings, store()),
        trust=_section(TrustSettings, trust()),
        broker=_section(BrokerSettings, broker()),
        release=_section(ReleaseSettings, release()),
    )
    faults = find_faults(settings)
    if faults:
        msg = "settings: " + "; ".join(faults) + " (luigi.cfg, or LUIGI_CONFIG_PATH)"
        raise SettingsError(msg)
    return settings


def find_faults(settings: PipelineSettings) -> list[str]:
    """Return one sentence for each setting that cannot work."""
    s = settings
    checks = [
        (s.dataset.min_images_per_class >= 2, "[dataset] min_images_per_class: at least 2"),
        (1 <= s.dataset.holdout_percent <= 90, "[dataset] holdout_percent: 1 to 90"),
        (s.dataset.max_broken_pictures >= 0, "[dataset] max_broken_pictures: 0 or more"),
        (s.dataset.batch_pictures >= 1, "[dataset] batch_pictures: at least 1"),
        (32 <= s.model.input_size <= 1024, "[model] input_size: 32 to 1024"),
        (0 <= s.model.grid <= 4, "[model] grid: 0 to 4"),
        (0 < s.model.alpha <= 2, "[model] alpha: above 0, at most 2"),
        (s.training.epochs >= 1, "[training] epochs: at least 1"),
        (s.training.batch_size >= 1, "[training] batch_size: at least 1"),
        (s.training.learning_rate > 0, "[training] learning_rate: above 0"),
        (s.training.augmented_views >= 0, "[training] augmented_views: 0 or more"),
        (s.training.small_set_views >= 0, "[training] small_set_views: 0 or more"),
        (0 <= s.training.dropout < 1, "[training] dropout: 0 to below 1"),
        (s.training.finetune_epochs >= 1, "[training] finetune_epochs: at least 1"),
        (s.training.finetune_rate > 0, "[training] finetune_rate: above 0"),
        (s.training.hidden_units >= 0, "[training] hidden_units: 0 or more"),
        (s.training.weight_decay >= 0, "[training] weight_decay: 0 or more"),
        (0 <= s.training.label_smoothing < 1, "[training] label_smoothing: 0 to below 1"),
        (
            s.training.mode != "head" or s.model.weights != "none",
            "[training] mode head needs [model] weights: a frozen backbone without weights learns nothing",
        ),
        (
            set(split_names(s.quantization.fallbacks)) <= set(SCHEMES),
            f"[quantization] fallbacks: some of {', '.join(SCHEMES)}, with commas",
        ),
        (
            not (s.quantization.calibration and (s.training.mode == "finetune" or s.model.weights == "none")),
            "[quantization] calibration: only for a frozen backbone; a tuned one has its snapshot's",
        ),
        (s.quantization.calibration_pictures >= 10, "[quantization] calibration_pictures: at least 10"),
        (0 <= s.gate.min_accuracy <= 1, "[gate] min_accuracy: 0 to 1"),
        (s.store.url.startswith("s3://"), "[store] url: give s3://bucket or s3://bucket/prefix"),
        (0 <= s.release.share_percent <= 100, "[release] share_percent: 0 to 100"),
        (1 <= s.release.self_test_pictures <= 50, "[release] self_test_pictures: 1 to 50"),
        (0 <= s.release.patches <= 20, "[release] patches: 0 to 20"),
        (s.trust.timestamp_days >= 1, "[trust] timestamp_days: at least 1"),
        (s.trust.keep_releases >= 2, "[trust] keep_releases: at least 2"),
    ]
    faults = [message for holds, message in checks if not holds]
    names = [(s.release.channel, "channel"), (s.broker.fleet, "fleet")]
    if s.release.device_class:
        names.append((s.release.device_class, "[release] device_class"))
    if s.quantization.calibration:
        names.append((s.quantization.calibration, "[quantization] calibration"))
    for value, what in names:
        try:
            check_name(value, what)
        except InputError as e:
            faults.append(str(e))
    return faults


def split_names(names: str) -> tuple[str, ...]:
    """Split at commas."""
    return tuple(one.strip() for one in names.split(",") if one.strip())


SectionT = TypeVar("SectionT")


def _section(kind: type[SectionT], config: luigi.Config) -> SectionT:
    values: dict[str, Any] = dict(config.param_kwargs)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.type == "Path":
            values[field.name] = Path(values[field.name]).expanduser()
    return kind(**values)
