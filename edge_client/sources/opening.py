"""Open the frame source of the settings: watched folder, list of files, pipe, video or camera."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.contract.errors import SettingsError
from edge_client.settings.frames import read_region
from edge_client.sources.source import Pace, Source

if TYPE_CHECKING:
    from edge_client.last_picture import LastPicture
    from edge_client.settings.frames import SourceSettings
    from edge_client.sources.driver import DriverWatch
    from edge_client.sources.passed_over import PassedOver


def open_source(
    settings: SourceSettings,
    driver: DriverWatch | None = None,
    note: LastPicture | None = None,
    passed_over: PassedOver | None = None,
) -> Source:
    """Build the source that the settings select.

    Args:
        settings: Section [source].
        driver: Watches a camera's driver, a disk and a decoder, which may hang; None: not watched.
        note: Learns which picture is being decoded; None: no note is kept.
        passed_over: Counts the files that a watched folder leaves alone.
    Raises: SettingsError with all faults; DeviceError if an extra cannot be imported.
    """
    faults = settings.faults()
    if faults:
        raise SettingsError("; ".join(f"[source] {fault}" for fault in faults))
    source = _open(settings, Pace(settings.frames_per_second), driver, note, passed_over)
    region = read_region(settings.region)
    if region is None and settings.min_change_percent == 0:
        return source
    from edge_client.sources.motion import MotionFilter  # noqa: PLC0415 - most devices do without

    return MotionFilter(
        source,
        region=region,
        min_change_percent=settings.min_change_percent,
        longest_still_s=settings.longest_still_s,
    )


def _open(
    settings: SourceSettings,
    pace: Pace,
    driver: DriverWatch | None,
    note: LastPicture | None,
    passed_over: PassedOver | None,
) -> Source:
    # Imported for the chosen kind only: a Pi with a camera module needs no OpenCV.
    if settings.kind in {"video", "picamera"}:
        return _open_camera(settings, pace, driver)
    from edge_client.sources.decoding import PictureDecoder  # noqa: PLC0415

    decoder = PictureDecoder(driver, note)
    if settings.kind == "folder":
        from edge_client.sources.folder import WatchedFolder  # noqa: PLC0415

        return WatchedFolder(
            Path(settings.path).expanduser(),
            after=settings.after,
            settle_s=settings.settle_s,
            recursive=settings.recursive,
            passed_over=passed_over,
            pace=pace,
            decoder=decoder,
        )
    if settings.kind == "files":
        from edge_client.sources.files import ImageFiles, find_pictures  # noqa: PLC0415

        return ImageFiles(find_pictures(settings.path), pace=pace, decoder=decoder)
    from edge_client.sources.pipe import PicturePipe  # noqa: PLC0415

    return PicturePipe(settings.path, pace=pace, decoder=decoder)


def _open_camera(settings: SourceSettings, pace: Pace, driver: DriverWatch | None) -> Source:
    width, height = settings.width, settings.height
    if settings.kind == "video":
        from edge_client.sources.video import VideoSource  # noqa: PLC0415

        return VideoSource(
            settings.path,
            width=width,
            height=height,
            pixel_format=settings.pixel_format,
            pace=pace,
            driver=driver,
        )
    from edge_client.sources.picamera import PiCamera  # noqa: PLC0415

    return PiCamera(int(settings.path or 0), width=width, height=height, pace=pace, driver=driver)
