"""Checks of the pipeline's settings: every fault at once, with the way out."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from edge_client.contract.addresses import shown_address
from edge_client.contract.broker_tls import find_broker_faults
from edge_client.contract.errors import InputError, SettingsError
from edge_client.contract.file_urls import folder_of_url, is_file_url
from edge_client.contract.names import check_name
from luigi_tasks.settings.board_faults import find_board_faults
from luigi_tasks.settings.rollout import find_rollout_faults
from luigi_tasks.settings.urls import split_bucket_url
from luigi_tasks.settings.values import IMAGENET_WIDTHS, SCHEMES, PipelineSettings, split_names

if TYPE_CHECKING:
    from collections.abc import Callable
    from urllib.parse import SplitResult

    from luigi_tasks.settings.values import StoreSettings

# Section, setting, whether a value is allowed, and the allowed values in words.
RANGES: tuple[tuple[str, str, Callable[[float], bool], str], ...] = (
    ("dataset", "min_images_per_class", lambda value: value >= 2, "at least 2"),
    ("dataset", "holdout_percent", lambda value: 1 <= value <= 90, "1 to 90"),
    ("dataset", "max_left_out_percent", lambda value: 0 <= value <= 100, "0 to 100"),
    ("dataset", "max_unpacked_bytes", lambda value: value >= 1, "at least 1"),
    ("dataset", "burst_s", lambda value: value >= 0, "0 or more"),
    ("dataset", "shard_pictures", lambda value: value >= 1, "at least 1"),
    ("model", "input_size", lambda value: 32 <= value <= 1024, "32 to 1024"),
    ("model", "grid", lambda value: 0 <= value <= 4, "0 to 4"),
    ("model", "alpha", lambda value: 0 < value <= 2, "above 0, at most 2"),
    ("training", "epochs", lambda value: value >= 1, "at least 1"),
    ("training", "batch_size", lambda value: value >= 1, "at least 1"),
    ("training", "learning_rate", lambda value: value > 0, "above 0"),
    ("training", "augmented_copies", lambda value: value >= 0, "0 or more"),
    ("training", "small_set_copies", lambda value: value >= 0, "0 or more"),
    ("training", "dropout", lambda value: 0 <= value < 1, "0 to below 1"),
    ("training", "finetune_epochs", lambda value: value >= 1, "at least 1"),
    ("training", "finetune_rate", lambda value: value > 0, "above 0"),
    ("training", "hidden_units", lambda value: value >= 0, "0 or more"),
    ("training", "weight_decay", lambda value: value >= 0, "0 or more"),
    ("training", "label_smoothing", lambda value: 0 <= value < 1, "0 to below 1"),
    ("training", "seed", lambda value: 0 <= value < 2**32, "0 to 4294967295"),
    ("quantization", "calibration_pictures", lambda value: value >= 10, "at least 10"),
    ("gate", "min_accuracy", lambda value: 0 <= value <= 1, "0 to 1"),
    ("gate", "max_model_bytes", lambda value: value >= 1, "at least 1"),
    ("gate", "champion_margin_points", lambda value: 0 < value <= 100, "above 0, at most 100"),
    ("gate", "min_class_recall", lambda value: 0 <= value <= 1, "0 to 1"),
    ("gate", "min_class_holdout", lambda value: value >= 0, "0 or more"),
    ("release", "share_percent", lambda value: 0 <= value <= 100, "0 to 100"),
    ("release", "self_test_pictures", lambda value: 1 <= value <= 50, "1 to 50"),
    ("release", "precision", lambda value: 0 <= value <= 1, "0 to 1"),
    ("release", "patches", lambda value: 0 <= value <= 20, "0 to 20"),
    ("trust", "timestamp_days", lambda value: value >= 1, "at least 1"),
    ("trust", "snapshot_days", lambda value: value >= 1, "at least 1"),
    ("trust", "targets_days", lambda value: value >= 1, "at least 1"),
    ("broker", "timeout_s", lambda value: 0 < value <= 600, "above 0, at most 600"),
    ("fleet", "period_s", lambda value: 1 <= value <= 86400, "1 to 86400"),
    ("fleet", "keep_periods", lambda value: 2 <= value <= 2000, "2 to 2000"),
    ("fleet", "heartbeat_s", lambda value: value == 0 or 5 <= value <= 86400, "0, or 5 to 86400"),
    ("fleet", "snapshot_s", lambda value: 1 <= value <= 3600, "1 to 3600"),
    ("fleet", "sampled_devices", lambda value: value >= 0, "0 or more"),
    ("fleet", "keep_all_h", lambda value: value >= 0, "0 or more"),
    ("fleet", "keep_hourly_days", lambda value: value >= 0, "0 or more"),
    ("fleet", "keep_daily_days", lambda value: value >= 0, "0 or more"),
    ("fleet", "max_reports_per_min", lambda value: value >= 1, "at least 1"),
    ("board", "port", lambda value: 0 <= value <= 65535, "0 to 65535"),
    ("board", "look_s", lambda value: 0.1 <= value <= 3600, "0.1 to 3600"),
    ("board", "session_h", lambda value: 0 < value <= 720, "above 0, at most 720"),
    ("fleet", "max_unknown_devices", lambda value: value >= 0, "0 or more"),
    ("trust", "keep_releases", lambda value: value >= 2, "at least 2"),
)


def find_faults(settings: PipelineSettings) -> list[str]:
    """Return one sentence for each setting that cannot work."""
    out_of_range = [
        f"[{section}] {name}: {allowed}"
        for section, name, is_allowed, allowed in RANGES
        if not is_allowed(getattr(getattr(settings, section), name))
    ]
    return [
        *out_of_range,
        *_find_group_faults(settings.dataset.group),
        *_find_impossible(settings),
        *_find_store_faults(settings.store.url),
        *_find_endpoint_faults(settings.store),
        *(f"[broker] {fault}" for fault in find_broker_faults(settings.broker)),
        *_find_unsafe_names(settings),
        *find_board_faults(settings.board),
        *find_rollout_faults(settings.rollout, settings.release.share_percent),
    ]


def _find_impossible(s: PipelineSettings) -> list[str]:
    """Return the faults that are no range of a single number."""
    widths = IMAGENET_WIDTHS.get(s.model.architecture, (s.model.alpha,))
    checks = [
        (
            s.model.weights != "imagenet" or s.model.alpha in widths,
            f"[model] alpha: {', '.join(map(str, widths))} have ImageNet weights; or give other weights",
        ),
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
        (
            not s.board.luigid_url or s.board.luigid_url.startswith(("http://", "https://")),
            "[board] luigid_url: an address that begins with http:// or https://",
        ),
    ]
    return [message for holds, message in checks if not holds]


def _find_unsafe_names(s: PipelineSettings) -> list[str]:
    """Return the faults of names that become parts of topics, keys or paths."""
    names = [(s.release.channel, "channel"), (s.broker.fleet, "fleet")]
    names.append((s.fleet.collector, "[fleet] collector"))
    if s.fleet.share_group:
        names.append((s.fleet.share_group, "[fleet] share_group"))
    if s.release.device_class:
        names.append((s.release.device_class, "[release] device_class"))
    if s.quantization.calibration:
        names.append((s.quantization.calibration, "[quantization] calibration"))
    faults = []
    for value, what in names:
        try:
            check_name(value, what)
        except InputError as e:
            faults.append(str(e))
    return faults


def _find_group_faults(group: str) -> list[str]:
    """Return the fault of what names groups and is no regular expression; a CSV is read when it is needed."""
    if not group.lower().endswith(".csv"):
        try:
            re.compile(group)
        except re.error as e:
            return [f"[dataset] group {group!r}: no regular expression ({e}), nor the path of a .csv"]
    return []


def _find_store_faults(url: str) -> list[str]:
    """Return the fault of an address that is neither a bucket's nor a folder's."""
    if is_file_url(url):
        try:
            folder_of_url(url)
        except SettingsError as e:
            return [f"[store] url {e}"]
        return []
    if split_bucket_url(url) is not None:
        return []
    return [f"[store] url {shown_address(url)!r}: give s3://bucket, s3://bucket/prefix or file:///folder"]


def _find_endpoint_faults(store: StoreSettings) -> list[str]:
    """Return the fault of an endpoint that is no address, or has the bucket in its path."""
    if not store.endpoint_url:
        return []
    named = f"[store] endpoint_url {shown_address(store.endpoint_url)!r}: give"
    try:
        parts = urlsplit(store.endpoint_url)
        is_address = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        is_address = False
    if not is_address or parts.query or parts.fragment:
        return [f"{named} http:// or https://, the host and its port"]
    bucket = split_bucket_url(store.url)
    if bucket is not None and _names_bucket(parts, bucket[0], store.addressing_style):
        return [f"{named} it without the bucket, which stands in [store] url"]
    return []


def _names_bucket(endpoint: SplitResult, bucket: str, addressing_style: str) -> bool:
    """Whether an endpoint is a bucket's address; storage.googleapis.com is none of a bucket `storage`."""
    host = (endpoint.hostname or "").removeprefix(f"{bucket}.")
    is_in_host = addressing_style == "virtual" and host != endpoint.hostname and host.count(".") >= 2
    return is_in_host or endpoint.path.strip("/") == bucket
