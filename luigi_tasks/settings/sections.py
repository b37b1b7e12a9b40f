"""Every pipeline setting: one `luigi.Config` class for each section, turned into frozen values.

The classes give Luigi the options of its command line and the texts of its help; what `luigi.cfg` and the
file named by `LUIGI_CONFIG_PATH` say is read in `given.py` and `reading.py`, since Luigi passes over what is
misspelt and takes a % for its own. Steps get the frozen values and never see Luigi.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import luigi
from luigi.parameter import ParameterVisibility

from edge_client.contract.errors import SettingsError
from luigi_tasks.settings.board_section import board
from luigi_tasks.settings.checks import find_faults
from luigi_tasks.settings.fleet_section import fleet
from luigi_tasks.settings.given import read_command_line, read_given
from luigi_tasks.settings.luigi_names import known_names
from luigi_tasks.settings.reading import read_values, with_place
from luigi_tasks.settings.rollout import RolloutSettings
from luigi_tasks.settings.rollout_section import rollout
from luigi_tasks.settings.unknown import find_unknown, find_unknown_changes
from luigi_tasks.settings.values import (
    ADDRESSING_STYLES,
    ARCHITECTURES,
    MODES,
    SCHEMES,
    THIN_EVIDENCE,
    BoardSettings,
    BrokerSettings,
    DatasetSettings,
    FleetSettings,
    GateSettings,
    ModelSettings,
    PipelineSettings,
    QuantizationSettings,
    ReleaseSettings,
    StoreSettings,
    TrainingSettings,
    TrustSettings,
    split_names,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from luigi_tasks.settings.given import GivenSettings


class Renamed(luigi.OptionalParameter):
    """Old name of a setting: a value under it, also from the command line, is refused with the new name."""

    def __init__(self, new_name: str) -> None:
        super().__init__(
            default=None, description=f"renamed to {new_name}", visibility=ParameterVisibility.HIDDEN
        )
        self.new_name = new_name


class dataset(luigi.Config):  # noqa: N801 - the class name is the section's name in luigi.cfg
    """Section [dataset]."""

    url = luigi.Parameter(
        default="",
        description="folder, s3://bucket/prefix, zip or tar archive (file, s3:// or http(s)), one folder a "
        "class; or a preset: preset:digits, preset:flowers; empty: --pictures names them",
    )
    sha256 = luigi.Parameter(
        default="", description="hex digest of an archive; required for one at http(s), else checked if given"
    )
    cache_dir = luigi.Parameter(
        default="~/.cache/edge-pipeline", description="local folder for unpacked archives and caches"
    )
    min_images_per_class = luigi.IntParameter(
        default=15, description="smallest number of different pictures of a class; one with fewer is left out"
    )
    holdout_percent = luigi.FloatParameter(
        default=20.0, description="percent of the pictures, in whole groups, kept from training for the gate"
    )
    max_left_out_percent = luigi.FloatParameter(
        default=5.0,
        description="percent of the pictures that may be left out and named in left-out.csv: undecodable, in "
        "two classes, in none or in one that is too small; more stop the run",
    )
    max_broken_pictures = Renamed("max_left_out_percent")
    max_unpacked_bytes = luigi.IntParameter(
        default=20_000_000_000, description="size limit of an unpacked archive"
    )
    shard_pictures = luigi.IntParameter(
        default=1000, description="pictures in one shard; a shard is one task, and workers share the tasks"
    )
    group = luigi.Parameter(
        default="",
        description="what names pictures that belong together: a regular expression over their paths (its "
        "first group, else all that it matches), or a .csv with the columns path and group; empty: nothing "
        "does, time and near-duplicates decide",
    )
    burst_s = luigi.FloatParameter(
        default=10.0,
        description="longest time between two frames of one burst (same camera and folder, by EXIF or file "
        "name), seconds; 0: times do not count",
    )
    near_duplicates = luigi.BoolParameter(
        default=True,
        parsing=luigi.BoolParameter.EXPLICIT_PARSING,
        description="whether pictures that look alike belong together; false where different things do, such "
        "as small ones before one plain background",
    )
    batch_pictures = Renamed("shard_pictures")
    profile = luigi.Parameter(
        default="",
        description="profile of ~/.aws/config for pictures in s3://, with credentials, region and "
        "endpoint_url; empty: as [store]",
    )
    requester_pays = luigi.BoolParameter(
        default=False,
        parsing=luigi.BoolParameter.EXPLICIT_PARSING,
        description="whether this AWS account pays for reading pictures of a bucket whose owner lets the "
        "reader pay",
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
        description="adds features of an earlier layer, averaged over grid x grid fields of the picture; 0: "
        "features of the top alone",
    )
    weights = luigi.Parameter(
        default="imagenet", description="imagenet (downloaded by Keras), none, or path of a no-top .h5 file"
    )


class training(luigi.Config):  # noqa: N801
    """Section [training]."""

    mode = luigi.ChoiceParameter(
        default="head",
        choices=MODES,
        description="head: frozen backbone, seconds to minutes; finetune: also the backbone's upper part "
        "(all of it with weights = none)",
    )
    epochs = luigi.IntParameter(default=30, description="largest number of passes over the training pictures")
    batch_size = luigi.IntParameter(default=128, description="pictures in one step")
    learning_rate = luigi.FloatParameter(default=0.001, description="Adam's peak rate, cosine decay to 0")
    augmented_copies = luigi.FloatParameter(
        default=0.5,
        description="augmented copies (rotated, cropped, re-lit) of each training picture; 0.5: one of every "
        "second picture; more where cameras differ",
    )
    small_set_copies = luigi.FloatParameter(
        default=4.0,
        description="the same with fewer than 1,000 training pictures, where copies help most "
        "and cost seconds",
    )
    augmented_views = Renamed("augmented_copies")
    small_set_views = Renamed("small_set_copies")
    horizontal_flip = luigi.BoolParameter(
        default=True,
        parsing=luigi.BoolParameter.EXPLICIT_PARSING,
        description="whether mirror images keep their class (not for digits and text)",
    )
    hidden_units = luigi.IntParameter(
        default=0, description="width of the head's hidden layer; 0: none, and updates of a few kB"
    )
    dropout = luigi.FloatParameter(
        default=0.0, description="share of the head's inputs dropped in training, 0 to below 1"
    )
    weight_decay = luigi.FloatParameter(default=0.01, description="L2 weight decay of the head")
    label_smoothing = luigi.FloatParameter(default=0.05, description="label smoothing, 0 to below 1")
    finetune_epochs = luigi.IntParameter(
        default=5, description="passes over the training pictures while fine-tuning the backbone"
    )
    finetune_rate = luigi.FloatParameter(
        default=0.0003, description="peak rate of fine-tuning, after a warm-up, then cosine decay to 0"
    )
    warm_start = luigi.BoolParameter(
        default=False,
        parsing=luigi.BoolParameter.EXPLICIT_PARSING,
        description="finetune starts from the deployed release's backbone; the model then depends on all "
        "earlier ones",
    )
    cluster = luigi.Parameter(
        default="",
        description="host:port of each machine that fine-tunes, first the one that runs luigi; empty: alone",
    )
    seed = luigi.IntParameter(
        default=1, description="random seed; the same seed and data give the same model"
    )


class quantization(luigi.Config):  # noqa: N801
    """Section [quantization]."""

    scheme = luigi.ChoiceParameter(
        default="int8", choices=SCHEMES, description="quantization of weights and activations"
    )
    fallbacks = luigi.Parameter(
        default="int8_wide, mixed, float16",
        description="schemes to try next, in the order of the list above, while the scheme before loses more "
        "accuracy against float than [gate] allows; empty: none",
    )
    calibration_pictures = luigi.IntParameter(
        default=200, description="number of training pictures, balanced over classes, that set int8 ranges"
    )
    calibration = luigi.Parameter(
        default="",
        description="id of a release whose calibration set is used, to make that release again; empty: the "
        "deployed release's set while it fits, else a new one",
    )


class gate(luigi.Config):  # noqa: N801
    """Section [gate]."""

    min_accuracy = luigi.FloatParameter(
        default=0.8, description="smallest hold-out accuracy of the .tflite file, 0-1"
    )
    max_float_drop_points = luigi.FloatParameter(
        default=2.0, description="largest loss of accuracy against the float network, percentage points"
    )
    max_class_drop_points = luigi.FloatParameter(
        default=10.0,
        description="largest loss of one class against the float network; one picture is forgiven",
    )
    max_champion_drop_points = luigi.FloatParameter(
        default=0.5,
        description="loss against the deployed release on the same pictures that is allowed even where it is "
        "no chance, percentage points; what chance explains is never refused",
    )
    champion_margin_points = luigi.FloatParameter(
        default=3.0,
        description="a candidate that is so many points worse than the deployed release must rarely pass: "
        "as long as the hold-out cannot tell it from an equal one, there is not enough evidence",
    )
    min_class_recall = luigi.FloatParameter(
        default=0.3, description="smallest share of a class's hold-out pictures that must be found, 0-1"
    )
    min_class_holdout = luigi.IntParameter(
        default=4,
        description="smallest number of hold-out pictures of each class (a burst counts once); fewer are not "
        "enough evidence",
    )
    thin_evidence = luigi.ChoiceParameter(
        default="hold_replacement",
        choices=THIN_EVIDENCE,
        description="a candidate with not enough evidence: hold_replacement publishes a first release, and "
        "holds one that would replace another; publish; hold",
    )
    replace_classes = luigi.BoolParameter(
        default=False,
        parsing=luigi.BoolParameter.EXPLICIT_PARSING,
        description="whether a release may be replaced by one that has none of its classes; also Deploy "
        "--replace-classes",
    )
    max_model_bytes = luigi.IntParameter(default=8_000_000, description="size limit of model.tflite")


class store(luigi.Config):  # noqa: N801
    """Section [store]; credentials, and what is empty here, come from boto3's usual chain.

    That is the environment (AWS_...), the profile in ~/.aws/config, and the role of the machine.
    """

    url = luigi.Parameter(
        default="s3://edge-models",
        description="s3://bucket/prefix, or file:///folder on one machine, that holds targets and releases",
    )
    endpoint_url = luigi.Parameter(
        default="",
        description="S3 endpoint, without the bucket; empty: that of the AWS configuration "
        "(AWS_ENDPOINT_URL_S3, a profile), else AWS",
    )
    region = luigi.Parameter(default="", description="region; empty: that of the AWS configuration")
    profile = luigi.Parameter(
        default="",
        description="profile of ~/.aws/config, with credentials, region and endpoint_url; empty: "
        "AWS_PROFILE, else default",
    )
    addressing_style = luigi.ChoiceParameter(
        default="auto",
        choices=ADDRESSING_STYLES,
        description="path: https://endpoint/bucket/key; virtual: https://bucket.endpoint/key, which Alibaba, "
        "Tencent and others demand; auto: that of the AWS configuration, else virtual at AWS, path elsewhere",
    )
    ca_file = luigi.Parameter(
        default="",
        description="certificates of the authorities (PEM) that an https endpoint is verified with; empty: "
        "AWS_CA_BUNDLE, else the public ones",
    )
    checksums = luigi.ChoiceParameter(
        default="",
        choices=("", "when_required", "when_supported"),
        description="boto3's CRC trailers, which many endpoints other than AWS lack: when_required, "
        "when_supported; empty: that of the AWS configuration, else when_required",
    )
    conditional_writes = luigi.BoolParameter(
        default=True,
        parsing=luigi.BoolParameter.EXPLICIT_PARSING,
        description="conditional writes (If-Match), so that two publishers cannot undo each other",
    )


class trust(luigi.Config):  # noqa: N801
    """Section [trust]; `edge-keys make` creates root and keys."""

    root = luigi.Parameter(default="keys/device/root.json", description="trusted root metadata")
    keys = luigi.Parameter(
        default="keys/pipeline",
        description="folder with targets.pem, snapshot.pem, timestamp.pem, work.pem and rollouts.pem, or a "
        "securesystemslib URI with {role} in it (KMS, HSM)",
    )
    timestamp_days = luigi.IntParameter(
        default=14,
        description="lifetime of timestamp metadata; devices refuse a store without a newer one for so long",
    )
    snapshot_days = luigi.IntParameter(default=90, description="lifetime of snapshot metadata")
    targets_days = luigi.IntParameter(default=365, description="lifetime of targets metadata")
    keep_releases = luigi.IntParameter(
        default=50,
        description="number of releases that stay signed; older ones that no channel, rollout or registered "
        "device needs are dropped",
    )
    memory_dir = luigi.Parameter(
        default="",
        description="folder that stays, where this machine remembers what it published, to notice a bucket "
        "that is older; empty: memory/ next to root",
    )
    passphrase_file = luigi.Parameter(
        default="",
        description="file whose first line is the passphrase of encrypted keys; empty: the file that "
        "EDGE_KEYS_PASSPHRASE_FILE names, if any",
    )


class broker(luigi.Config):  # noqa: N801
    """Section [broker]."""

    host = luigi.Parameter(
        default="127.0.0.1", description="MQTT broker; empty: none, nothing is announced and devices poll"
    )
    port = luigi.IntParameter(default=1883, description="port of the broker (TLS: usually 8883)")
    fleet = luigi.Parameter(
        default="fleet", description="name of the fleet: first part of all topics after edge/"
    )
    username = luigi.Parameter(default="", description="empty: anonymous")
    password_file = luigi.Parameter(default="", description="file whose first line is the password")
    tls = luigi.BoolParameter(
        default=False, parsing=luigi.BoolParameter.EXPLICIT_PARSING, description="MQTT over TLS"
    )
    ca_file = luigi.Parameter(default="", description="CA certificate; empty: the system's")
    certificate_file = luigi.Parameter(
        default="",
        description="the pipeline's client certificate, for brokers that require one (AWS IoT Core)",
    )
    key_file = luigi.Parameter(
        default="", description="private key of the client certificate, without a passphrase"
    )
    alpn = luigi.Parameter(
        default="",
        description="names that TLS offers for the protocol, with commas: x-amzn-mqtt-ca for AWS IoT Core on "
        "port 443; empty: none",
    )
    timeout_s = luigi.FloatParameter(
        default=5.0, description="time limit of connecting, publishing and reading back"
    )


class release(luigi.Config):  # noqa: N801
    """Section [release]."""

    channel = luigi.Parameter(default="stable", description="channel that Deploy moves")
    share_percent = luigi.FloatParameter(
        default=100.0, description="percent of devices that may install the release"
    )
    device_class = luigi.Parameter(
        default="", description="only devices of this [device] device_class install the release; empty: all"
    )
    self_test_pictures = luigi.IntParameter(
        default=5, description="signed hold-out pictures that a device must classify before activation"
    )
    patches = luigi.IntParameter(
        default=3,
        description="number of earlier releases to publish a patch from: a few kB instead of the model",
    )
    precision = luigi.FloatParameter(
        default=0.95,
        description="share of the sure predictions of each class that should be right, above 0 to 1; devices "
        "report the others as unknown; 0: every prediction is sure",
    )
    strangers = luigi.BoolParameter(
        default=True,
        parsing=luigi.BoolParameter.EXPLICIT_PARSING,
        description="second output of the model that tells pictures of no class; clients of before it refuse "
        "such a release until they are updated",
    )


SECTIONS: dict[str, type[luigi.Config]] = {
    one.__name__: one
    for one in (
        dataset,
        model,
        training,
        quantization,
        gate,
        store,
        trust,
        broker,
        release,
        fleet,
        rollout,
        board,
    )
}
VALUES: dict[str, type[Any]] = {
    "dataset": DatasetSettings,
    "model": ModelSettings,
    "training": TrainingSettings,
    "quantization": QuantizationSettings,
    "gate": GateSettings,
    "store": StoreSettings,
    "trust": TrustSettings,
    "broker": BrokerSettings,
    "release": ReleaseSettings,
    "fleet": FleetSettings,
    "rollout": RolloutSettings,
    "board": BoardSettings,
}
RENAMED = {
    (name, key): parameter.new_name
    for name, section in SECTIONS.items()
    for key, parameter in section.get_params()
    if isinstance(parameter, Renamed)
}
KNOWN = {
    name: {key for key, _ in section.get_params() if (name, key) not in RENAMED}
    for name, section in SECTIONS.items()
}


class other_projects(luigi.Config):  # noqa: N801
    """Section [other_projects]: only the check for unknown sections reads it."""

    sections = luigi.Parameter(
        default="",
        description="sections of other projects that read the same file, with commas; any other unknown "
        "section stops the run",
    )


def load_settings(pictures: str = "", **changes: Mapping[str, object]) -> PipelineSettings:
    """Read all sections and check them.

        load_settings("~/pictures", training={"epochs": 60}, store={"url": "file:///srv/edge-models"})

    Args:
        pictures: Where the pictures are; empty: `[dataset] url`.
        changes: Settings by section that count before luigi.cfg and the command line.
    Raises: SettingsError that lists every fault at once.
    """
    wanted = {**changes, "dataset": {**changes.get("dataset", {}), **({"url": pictures} if pictures else {})}}
    files = read_given()
    command_line = read_command_line({name: dict(one.get_params()) for name, one in SECTIONS.items()})
    faults = [
        *find_unknown_settings(files),
        *find_unknown(command_line, KNOWN, RENAMED),
        *find_unknown_changes(changes, KNOWN, RENAMED),
    ]
    read: dict[str, Any] = {}
    for section, kind in VALUES.items():
        parameters = {name: one for name, one in SECTIONS[section].get_params() if name in KNOWN[section]}
        values, unreadable = read_values(section, parameters, wanted.get(section, {}), command_line, files)
        read[section] = _to_values(kind, values)
        faults += unreadable
    settings = PipelineSettings(**read)
    faults += [with_place(one, changes, command_line, files) for one in find_faults(settings)]
    if faults:
        msg = "settings: " + "; ".join(dict.fromkeys(faults))
        raise SettingsError(msg)
    return settings


def find_unknown_settings(files: GivenSettings) -> list[str]:
    """Return one sentence for each name in the files that neither this pipeline nor Luigi reads."""
    given = files.get("other_projects", {}).get("sections")
    value = given.value if given is not None else ""
    others = split_names(value) if isinstance(value, str) else tuple(str(one) for one in value)
    return find_unknown(files, {**known_names(), **KNOWN}, RENAMED, others)


def _to_values(kind: type[Any], values: Mapping[str, Any]) -> Any:  # noqa: ANN401 - of any section
    return kind(
        **{
            field.name: Path(values[field.name]).expanduser() if field.type == "Path" else values[field.name]
            for field in dataclasses.fields(kind)
        }
    )
