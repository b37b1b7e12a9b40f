"""Checks of the pipeline's settings: every fault at once, with the way out."""

from __future__ import annotations

from edge_client.contract.errors import InputError
from edge_client.contract.names import check_name
from luigi_tasks.settings.values import SCHEMES, PipelineSettings, split_names


def find_faults(settings: PipelineSettings) -> list[str]:
    """Return one sentence for each setting that cannot work."""
    s = settings
    checks = [
        (s.dataset.min_images_per_class >= 2, "[dataset] min_images_per_class: at least 2"),
        (1 <= s.dataset.holdout_percent <= 90, "[dataset] holdout_percent: 1 to 90"),
        (s.dataset.max_broken_pictures >= 0, "[dataset] max_broken_pictures: 0 or more"),
        (s.dataset.shard_pictures >= 1, "[dataset] shard_pictures: at least 1"),
        (32 <= s.model.input_size <= 1024, "[model] input_size: 32 to 1024"),
        (0 <= s.model.grid <= 4, "[model] grid: 0 to 4"),
        (0 < s.model.alpha <= 2, "[model] alpha: above 0, at most 2"),
        (s.training.epochs >= 1, "[training] epochs: at least 1"),
        (s.training.batch_size >= 1, "[training] batch_size: at least 1"),
        (s.training.learning_rate > 0, "[training] learning_rate: above 0"),
        (s.training.augmented_copies >= 0, "[training] augmented_copies: 0 or more"),
        (s.training.small_set_copies >= 0, "[training] small_set_copies: 0 or more"),
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
