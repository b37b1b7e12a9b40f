"""Cheaper ways to a release's model, made once and signed with it: compressed, and as patches on recent ones.

`edge_client.update.patches` is the side that takes them, and proves each one here before it is signed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_client.contract.names import COMPRESSED_MODEL_FILE, MODEL_FILE, patch_file, release_target
from edge_client.update.patches import MODEL_LIMIT_BYTES, unpack

if TYPE_CHECKING:
    from luigi_tasks.release.published import RepositoryState

LEVEL = 19


def make_patches(
    state: RepositoryState, release: str, model: bytes, channel: str, count: int
) -> dict[str, bytes]:
    """Return the files that lead to a release's model and are not signed yet, by signed target path.

    Patches lead from what the channel points to, and from the latest releases before this one.

    Args:
        state: What is published.
        release: Release id; may be published already.
        model: Its `model.tflite`.
        channel: Channel that is going to move.
        count: Releases that a patch leads from.
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
        if path not in state.files and len(frame := _prove(model, base_model)) < len(model)
    }


def pack(model: bytes, base: bytes) -> bytes:
    """Return a zstd frame that `unpack` makes `model` of, given `base`; empty: given nothing."""
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


def _prove(model: bytes, base: bytes) -> bytes:
    frame = pack(model, base)
    assert unpack(frame, base, len(model)) == model  # noqa: S101 - or the codec is broken
    return frame


def _bases(state: RepositoryState, release: str, channel: str, count: int) -> list[str]:
    pointer = state.channel(channel)
    latest = [pointer.release] if pointer is not None else []
    latest += reversed(state.releases())
    usable = [
        one
        for one in dict.fromkeys(latest)
        if one != release
        and (signed := state.files.get(release_target(one, MODEL_FILE))) is not None
        and signed.length <= MODEL_LIMIT_BYTES
    ]
    return usable[:count]
