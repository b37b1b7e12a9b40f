"""Check the release of each channel, or the model file that serves in their place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_client.releases import read_release
from edge_client.settings.file import of_channels

if TYPE_CHECKING:
    from pathlib import Path

    from edge_client.settings.file import Settings


def check_release(settings: Settings) -> str:
    from edge_client.serving.activation import open_slot  # noqa: PLC0415

    folder = current_slot(settings)
    if folder is None:
        return "none yet; `edge-client run` downloads it"
    open_slot(folder, settings.device.threads)
    return f"{folder.name} loads and runs"


def check_own_model(settings: Settings) -> str:
    """Load the model file of [device] model as the daemon does, in another process first."""
    from edge_client.serving.model_trial import open_tried  # noqa: PLC0415

    opened = open_tried(settings)
    model = opened.classifier
    notes = "".join(f"; warning: {note}" for note in opened.notes)
    return (
        f"{settings.device.model} loads and runs: SHA-256 {opened.sha256}, {len(model.labels)} labels, "
        f"{model.input_height}x{model.input_width} pixels{notes}"
    )


def current_slot(settings: Settings) -> Path | None:
    """Return the folder of the serving release; None without one."""
    from edge_client.update.slots import Slots  # noqa: PLC0415

    slots = Slots(settings.device.state_dir)
    return None if slots.current is None else slots.folder(slots.current)


def labels_of_channels(settings: Settings) -> set[str] | None:
    """Return the labels of the model file, or of the serving releases; None while a channel has none."""
    if settings.device.model:
        from edge_client.serving.model_trial import open_tried  # noqa: PLC0415

        return set(open_tried(settings).classifier.labels)
    folders = [current_slot(one) for one in of_channels(settings)]
    if None in folders:
        return None
    return {label for folder in folders if folder is not None for label in read_release(folder).labels}
