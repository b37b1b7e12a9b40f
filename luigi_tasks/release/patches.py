"""Smaller downloads of a release's model, signed with it: compressed, and as patches on recent releases.

Each file is unpacked by the device's own code (`edge_client.update.patches`) before it is signed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_client.contract.errors import DeviceError
from edge_client.contract.names import COMPRESSED_MODEL_FILE, MODEL_FILE, patch_file, release_target
from edge_client.update.patches import MODEL_LIMIT_BYTES, unpack
from luigi_tasks.release.pointers import needed_by

if TYPE_CHECKING:
    from luigi_tasks.release.published import RepositoryState

LEVEL = 19


def make_patches(
    state: RepositoryState, release: str, model: bytes, channel: str, count: int
) -> dict[str, bytes]:
    """Return the compressed model and the patches that are not signed yet, by signed target path.

    Patches start from the release that the channel points to, from those of its rollout, and from the latest
    releases before this one.

    Args:
        state: The published state.
        release: Release id; may be published already.
        model: The release's `model.tflite`.
        channel: Channel that is going to move.
        count: Number of releases that a patch starts from.
    """
    if len(model) > MODEL_LIMIT_BYTES:
        return {}
    made = {release_target(release, COMPRESSED_MODEL_FILE): b""}
    for base in _bases(state, release, channel, count):
        path = release_target(release, patch_file(base))
        if path not in state.files:
            made[path] = state.read(release_target(base, MODEL_FILE))
    return {
        path: frame
        for path, base_model in made.items()
        if path not in state.files and len(frame := _pack_proven(model, base_model)) < len(model)
    }


def pack(model: bytes, base: bytes) -> bytes:
    """Return a zstd frame from which `unpack` restores `model`, given `base`; an empty base means none."""
    import zstandard  # noqa: PLC0415 - only when a release is published

    # The window must reach over all of the base, or its beginning cannot be referred to.
    window_log = max(len(base) + len(model), 1 << 10).bit_length()
    parameters = zstandard.ZstdCompressionParameters.from_level(
        LEVEL, window_log=window_log, enable_ldm=bool(base)
    )
    dictionary = (
        zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if base else None
    )
    return zstandard.ZstdCompressor(dict_data=dictionary, compression_params=parameters).compress(model)


def _pack_proven(model: bytes, base: bytes) -> bytes:
    """Pack the model, and unpack it again as a device will.

    Raises: DeviceError if the result is another model.
    """
    frame = pack(model, base)
    if unpack(frame, base, len(model)) != model:
        msg = (
            f"zstandard: {len(frame)} bytes do not unpack to the model that was packed; nothing was signed. "
            "Install the zstandard package again, and check this machine's memory"
        )
        raise DeviceError(msg)
    return frame


def _bases(state: RepositoryState, release: str, channel: str, count: int) -> list[str]:
    pointers = (state.channel(channel), state.rollout(channel))
    latest = [release for one in pointers if one is not None for release in needed_by(one)]
    latest += reversed(state.releases())
    usable = [
        one
        for one in dict.fromkeys(latest)
        if one != release
        and (signed := state.files.get(release_target(one, MODEL_FILE))) is not None
        and signed.length <= MODEL_LIMIT_BYTES
    ]
    return usable[:count]
