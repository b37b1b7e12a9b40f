"""Cheapest download of a model: a patch on a model of this device, the compressed model, or the model itself.

Each option is a signed file of its own, and the model that it gives is verified like one that was downloaded
whole. An option that fails, whatever the reason, costs its bytes; the next one is tried, the model itself
last. Both are zstd frames (RFC 8878); the dictionary of a patch is the model that it starts from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from typing import TYPE_CHECKING

from edge_client.contract.errors import DeviceError, EdgeError, InputError, TrustError
from edge_client.contract.names import COMPRESSED_MODEL_FILE, MODEL_FILE, patch_file, release_target
from edge_client.disk import disk_errors, write_durably

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from edge_client.repository.trusted import TrustedRepository

logger = logging.getLogger(__name__)

# Old model, new model and the decoder's window are in memory together.
MODEL_LIMIT_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class DownloadOption:
    """A signed file that unpacks to the model.

    Attributes:
        path: Signed target path.
        size_bytes: Size of the download.
        base: Model that it is a patch on; None if it needs no other model.
    """

    path: str
    size_bytes: int
    base: Path | None


def fetch_model(repository: TrustedRepository, release: str, folder: Path, slots: Iterable[Path]) -> None:
    """Download the model of a release into `folder`, verified.

    Args:
        repository: After its refresh.
        release: Release id.
        folder: Destination.
        slots: Folders of the releases that are on the disk.
    Raises: TrustError, TransportError or DeviceError.
    """
    full = release_target(release, MODEL_FILE)
    size_bytes = repository.look_up(full).size_bytes
    if not repository.holds(full, folder / MODEL_FILE):
        options = download_options(repository, release, slots) if size_bytes <= MODEL_LIMIT_BYTES else []
        for option in options:
            if option.size_bytes >= size_bytes:
                break
            try:
                _download(repository, option, full, size_bytes, folder)
            except DeviceError:
                raise
            except (EdgeError, ImportError) as e:
                logger.warning("%s could not be used (%s); trying the next cheapest download", option.path, e)
            else:
                return
    repository.fetch(full, folder)


def download_options(
    repository: TrustedRepository, release: str, slots: Iterable[Path]
) -> list[DownloadOption]:
    """Return the signed files that give a model, alone or with a model in `slots`, the cheapest first."""
    bases = [(patch_file(slot.name), slot / MODEL_FILE) for slot in slots]
    return sorted(
        _signed_options(repository, release, [(COMPRESSED_MODEL_FILE, None), *bases]),
        key=lambda option: option.size_bytes,
    )


def _signed_options(
    repository: TrustedRepository, release: str, files: Iterable[tuple[str, Path | None]]
) -> Iterator[DownloadOption]:
    for name, base in files:
        with contextlib.suppress(TrustError):  # most releases have no patch on most others
            signed = repository.look_up(release_target(release, name))
            yield DownloadOption(signed.path, signed.size_bytes, base)


def _download(
    repository: TrustedRepository, option: DownloadOption, full: str, size_bytes: int, folder: Path
) -> None:
    base = _read_base(option.base)
    patch = repository.fetch(option.path, folder)
    with disk_errors(patch):
        frame = patch.read_bytes()
        patch.unlink()
    model = unpack(frame, base, size_bytes)
    repository.verify(full, model)
    write_durably(folder / MODEL_FILE, model)


def _read_base(base: Path | None) -> bytes:
    """Return the model that a patch starts from; empty without one.

    Raises: InputError if it cannot be read: this costs the patch, not the update as a full disk would.
    """
    try:
        return b"" if base is None else base.read_bytes()
    except OSError as e:
        msg = f"{base}: {e.strerror or e}"
        raise InputError(msg) from e


def unpack(frame: bytes, base: bytes, size_bytes: int) -> bytes:
    """Unpack a zstd frame to exactly `size_bytes`.

    Raises: InputError if it does not give so many bytes, or claims more memory than both models take.
    """
    import zstandard  # noqa: PLC0415 - only when a release is fetched

    # A window spans both models at most; zstd rounds it up, and has a minimum.
    window_bytes = 1 << max(len(base) + size_bytes, 1 << 20).bit_length()
    dictionary = (
        zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if base else None
    )
    decoder = zstandard.ZstdDecompressor(dict_data=dictionary, max_window_size=window_bytes)
    try:
        with decoder.stream_reader(frame) as reader:
            model = reader.read(size_bytes + 1)
    except zstandard.ZstdError as e:
        msg = f"it does not unpack: {e}"
        raise InputError(msg) from e
    if len(model) != size_bytes:
        msg = f"it unpacks to {'more' if len(model) > size_bytes else len(model)} bytes, not {size_bytes}"
        raise InputError(msg)
    return model
