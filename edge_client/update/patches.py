"""The cheapest way to a release's model: a patch on one that this device has, its compressed form, or itself.

Each way is a signed file of its own, and what it leads to is verified like the model itself. A way that
fails, whatever the reason, costs its bytes; the next one is tried, the model itself last. The form is
zstd (RFC 8878), a patch being a frame whose dictionary is the model it starts from.
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
class Way:
    """A signed file that leads to the model.

    Attributes:
        path: Signed target path.
        size_bytes: What it costs.
        base: Model that it is a patch on; None: none is needed.
    """

    path: str
    size_bytes: int
    base: Path | None


def fetch_model(repository: TrustedRepository, release: str, folder: Path, slots: Iterable[Path]) -> None:
    """Bring the model of a release into `folder`, verified.

    Args:
        repository: After its refresh.
        release: Release id.
        folder: Where it goes.
        slots: Folders of the releases that are on the disk.
    Raises: TrustError, TransportError or DeviceError.
    """
    full = release_target(release, MODEL_FILE)
    size_bytes = repository.look_up(full).size_bytes
    if not repository.holds(full, folder / MODEL_FILE):
        for way in find_ways(repository, release, slots) if size_bytes <= MODEL_LIMIT_BYTES else ():
            if way.size_bytes >= size_bytes:
                break
            try:
                _go(repository, way, full, size_bytes, folder)
            except DeviceError:
                raise
            except (EdgeError, ImportError) as e:
                logger.warning("%s leads nowhere, another way is taken: %s", way.path, e)
            else:
                return
    repository.fetch(full, folder)


def find_ways(repository: TrustedRepository, release: str, slots: Iterable[Path]) -> list[Way]:
    """Return the signed ways to a model, from nothing or from a model in `slots`, the cheapest first."""
    bases = [(patch_file(slot.name), slot / MODEL_FILE) for slot in slots]
    return sorted(
        _signed_ways(repository, release, [(COMPRESSED_MODEL_FILE, None), *bases]),
        key=lambda way: way.size_bytes,
    )


def _signed_ways(
    repository: TrustedRepository, release: str, files: Iterable[tuple[str, Path | None]]
) -> Iterator[Way]:
    for name, base in files:
        with contextlib.suppress(TrustError):  # most releases have no patch on most others
            signed = repository.look_up(release_target(release, name))
            yield Way(signed.path, signed.size_bytes, base)


def _go(repository: TrustedRepository, way: Way, full: str, size_bytes: int, folder: Path) -> None:
    patch = repository.fetch(way.path, folder)
    with disk_errors(patch):
        frame = patch.read_bytes()
        patch.unlink()
    base = b""
    if way.base is not None:
        with disk_errors(way.base):
            base = way.base.read_bytes()
    model = unpack(frame, base, size_bytes)
    repository.verify(full, model)
    write_durably(folder / MODEL_FILE, model)


def unpack(frame: bytes, base: bytes, size_bytes: int) -> bytes:
    """Return what a frame unpacks to, of which `size_bytes` were promised.

    Raises: InputError if it does not, or claims memory beyond that of both models.
    """
    import zstandard  # noqa: PLC0415 - only when a release is fetched

    # A window reaches over both at most; zstd rounds it up, and has a least one.
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
