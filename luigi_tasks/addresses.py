"""Addresses of results in the store: each key is a digest of all inputs of the result.

Pure: values in, key out. A function returns None while a result that the key depends on does not exist yet;
the task's target is pending then. Raise a step's version when the step would make something else from the
same input.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from edge_client.contract.release import PREPROCESSING_ID
from luigi_tasks.storage.documents import content_key
from luigi_tasks.training.cluster import cluster_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luigi_tasks.backbone.records import BackboneRecord
    from luigi_tasks.dataset.records import SnapshotSummary
    from luigi_tasks.settings.values import PipelineSettings, Portions

TUNED_FILE = "tuned.json"

VERSIONS = {
    "plan": 3,
    "snapshot": 3,
    "tuned": 4,
    "backbone": 2,
    "features": 3,
    "head": 5,
    "candidate": 5,
    "evaluation": 6,
    "doubtful": 1,
}
# Version of training/augmentation.py, whose copies of pictures three steps learn from.
AUGMENTATION_VERSION = 2

# The settings of [dataset] that decide groups and sides. A change starts from what the last snapshot decided.
GROUP_RULES = ("holdout_percent", "group", "burst_s", "near_duplicates")
# Those that decide the snapshot of a given listing.
SPLIT_RULES = ("min_images_per_class", "max_left_out_percent", *GROUP_RULES)

# Settings were renamed, keys in the store stay: the name under which a setting enters a key.
NAMES_IN_KEYS = {
    "augmented_copies": "augmented_views",
    "small_set_copies": "small_set_views",
    "copies": "views",
    "shard_pictures": "batch_pictures",
}


@dataclasses.dataclass(frozen=True)
class Identity:
    """Identity of a run: the only input of the addresses of its results.

    Attributes:
        pictures: Name of the dataset, see `presets.name_of_pictures`.
        listing: Digest of the list of its pictures.
        settings: The settings of the run.
        weights: Digest of the initial weights, `imagenet` or `none`.
        groups: Digest of the CSV that names groups; empty: none does.
    """

    pictures: str
    listing: str
    settings: PipelineSettings
    weights: str
    groups: str = ""

    @property
    def tunes(self) -> bool:
        """Whether the backbone itself is trained."""
        return self.settings.tunes


def recipe(settings: PipelineSettings) -> str:
    """Return the digest of all settings."""
    return content_key(
        {field.name: _plain(getattr(settings, field.name)) for field in dataclasses.fields(settings)}
    )


def plan(identity: Identity) -> str:
    """Key of the plan: the listing, the size of a shard and the rules of groups."""
    size = identity.settings.dataset.shard_pictures
    rules = _rules(identity, GROUP_RULES)
    return f"work/plans/{_digest('plan', identity.pictures, identity.listing, size, rules)}.json"


def shard(key: str) -> str:
    """Key of a shard's record; the shard's own key names paths, sizes and versions of its pictures."""
    return f"work/batches/{key}/batch.json"


def inventory(identity: Identity, shards: Sequence[str]) -> str:
    """Name of the inventory that a snapshot leaves: the listing, its shards and the rules of groups."""
    return content_key("inventory", identity.listing, tuple(shards), _rules(identity, GROUP_RULES))


def snapshot(identity: Identity) -> str:
    """Key of the snapshot's summary: the listing and the rules of the split."""
    rules = _rules(identity, SPLIT_RULES)
    key = _digest("snapshot", identity.pictures, identity.listing, rules)
    return f"work/snapshots/{key}/summary.json"


def left_out(identity: Identity) -> str:
    """Key of the list of what a snapshot leaves out; also there where that is too much for a snapshot."""
    return snapshot(identity).rpartition("/")[0] + "/left-out.csv"


def tuned(identity: Identity, snapshot_digest: str | None) -> str | None:
    """Key of the tuned backbone: the pictures' content and what trains on them."""
    if snapshot_digest is None:
        return None
    key = _digest("tuned", snapshot_digest, _network(identity), _learning(identity))
    return f"work/tuned/{key}/{TUNED_FILE}"


def backbone(identity: Identity, scheme: str, tuned_key: str | None) -> str | None:
    """Key of the converted backbone: weights, address of the dataset, quantization; not the pictures."""
    if identity.tunes:
        return None if tuned_key is None else _backbone_path(identity, scheme, tuned_key)
    named = identity.settings.quantization.calibration
    return _backbone_path(identity, scheme, [identity.pictures, named] if named else identity.pictures)


def calibrated_backbone(identity: Identity, scheme: str, tuned_key: str | None) -> str:
    """Key of the backbone that a calibration set belongs to, wherever the pictures are stored."""
    if identity.tunes:
        return _backbone_key(identity, scheme, tuned_key)
    return _backbone_key(identity, scheme)


def variant(folder: str, name: str, sha256: str) -> str:
    """Key of one TFLite variant of a backbone."""
    return f"{folder}{name}-{sha256}.tflite"


def features(
    identity: Identity,
    converted: BackboneRecord | None,
    portions: Portions | None,
    shard_key: str,
    moved: str = "",
) -> str | None:
    """Key of a shard's features: the backbone's bytes, the augmentation, the shard and its split.

    Args:
        identity: The run.
        converted: The backbone.
        portions: How much is computed for each training picture.
        shard_key: The shard.
        moved: Digest of those of its pictures that stand elsewhere than their own hash puts them; "": none.
    """
    if converted is None or portions is None:
        return None
    s = identity.settings
    copies = (_plain(portions), s.training.horizontal_flip, s.dataset.holdout_percent)
    shown = (PREPROCESSING_ID, AUGMENTATION_VERSION, copies)
    key = _digest("features", converted.variants, s.model.input_size, shown)
    return f"work/features/{key}/{shard_key}{moved and '-' + moved}.json"


def head(identity: Identity, snapshot_digest: str | None, converted: BackboneRecord | None) -> str | None:
    """Key of the head: the pictures' content, the backbone's bytes and how the head learns."""
    if snapshot_digest is None or converted is None:
        return None
    key = _digest("head", snapshot_digest, converted.variants, _learning(identity))
    return f"work/heads/{key}/training.json"


def candidate(identity: Identity, heads: Sequence[str]) -> str:
    """Key of the candidate: the heads of the schemes that were tried, and what else decides its release."""
    rules = identity.settings.release
    parts: list[object] = [list(heads), rules.precision]
    if rules.device_class:  # it is part of the release's id
        parts.append(rules.device_class)
    if not rules.strangers:
        parts.append({"strangers": False})
    return f"work/candidates/{_digest('candidate', *parts)}/candidate.json"


def evaluation(
    identity: Identity, candidate_key: str, champion: str | None, summary: SnapshotSummary | None = None
) -> str:
    """Key of the evaluation: the candidate, the gate's settings and the champion it had to meet.

    Args:
        identity: The run.
        candidate_key: Key of the candidate.
        champion: The deployed release; None: nothing is deployed.
        summary: The snapshot. Its pictures decide the candidate; whether a class of the champion was left
            out of it, or has no folder any more, only matters here.
    """
    parts: list[object] = [candidate_key, _plain(identity.settings.gate), champion]
    if champion is not None and summary is not None and summary.left_out_classes:
        parts.append(list(summary.left_out_classes))
    key = _digest("evaluation", *parts)
    return f"work/evaluations/{key}/evaluation.json"


def doubtful(identity: Identity, snapshot_digest: str | None) -> str | None:
    """Key of the list of doubtful labels: the listing, since it has paths, the pictures and the network."""
    if snapshot_digest is None:
        return None
    scheme = identity.settings.quantization.scheme
    key = _digest("doubtful", identity.listing, snapshot_digest, _network(identity), scheme)
    return f"work/doubtful/{key}/doubtful.json"


def lineage(release: str) -> str:
    """Key of the record of what a release was made from."""
    return f"work/lineage/{release}.json"


def _rules(identity: Identity, names: Sequence[str]) -> dict[str, object]:
    dataset = _plain(identity.settings.dataset)
    return {name: dataset[name] for name in names} | {"groups": identity.groups}


def _digest(step: str, *parts: object) -> str:
    return content_key(step, VERSIONS[step], *parts)


def _backbone_path(identity: Identity, scheme: str, *origin: object) -> str:
    return f"work/backbones/{_backbone_key(identity, scheme, *origin)}/backbone.json"


def _backbone_key(identity: Identity, scheme: str, *origin: object) -> str:
    s = identity.settings
    quantized = (scheme, s.quantization.calibrated_on(scheme))
    return _digest("backbone", _network(identity), s.training.seed, quantized, *origin)


def _network(identity: Identity) -> dict[str, object]:
    return {**_plain(identity.settings.model), "weights": identity.weights, "preprocessing": PREPROCESSING_ID}


def _learning(identity: Identity) -> dict[str, object]:
    """Return the hyperparameters that affect training."""
    training = identity.settings.training
    rules = {**_plain(training), "preprocessing": PREPROCESSING_ID, "views": AUGMENTATION_VERSION}
    # Names of machines change nothing; how many tune together does: each sees its own share.
    return rules | {"cluster": cluster_size(training.cluster) if identity.tunes else 0}


def _plain(values: Any) -> dict[str, object]:  # noqa: ANN401 - any of the settings' dataclasses
    fields = dataclasses.asdict(values)
    return {NAMES_IN_KEYS.get(name, name): value for name, value in fields.items() if name != "cache_dir"}
