"""Patches as the pipeline makes them, for tests without it."""

from __future__ import annotations

import zstandard


def zstd_patch(model: bytes, base: bytes = b"") -> bytes:
    """Return a frame that makes `model` of `base`; empty: of nothing."""
    parameters = zstandard.ZstdCompressionParameters.from_level(19, window_log=20)
    dictionary = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return zstandard.ZstdCompressor(dict_data=dictionary, compression_params=parameters).compress(model)
