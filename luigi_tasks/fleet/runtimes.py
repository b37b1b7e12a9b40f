"""Which operators a TFLite runtime has, by its name and version.

An operator's version is what its registration asks for: a runtime of before that version refuses the model
("Didn't find op for builtin opcode 'FULLY_CONNECTED' version '12'", tensorflow#80736). What is not in the
table is unknown: neither possible nor impossible.
Source: the map of minimum runtime versions in tflite/tools/versioning/runtime_version.cc of LiteRT, and its
predecessor in TensorFlow, as of 2026-11.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# Operator: the highest version that TensorFlow 2.5 has, then the release that brought each further one.
_RELEASES_OF_VERSIONS = """
ABS 3 2.6 2.12
ADD 3 2.6 2.13
ARG_MAX 2 2.9
ARG_MIN 2 2.9
AVERAGE_POOL_2D 3
BATCH_MATMUL 4
BATCH_TO_SPACE_ND 3 2.12
CAST 1 2.7 2.8 2.9 2.12 2.15 2.17
CONCATENATION 3 2.14
CONV_2D 5 2.9 2.11 2.15
DEPTHWISE_CONV_2D 6 2.11
DEPTH_TO_SPACE 2
DEQUANTIZE 4 2.7 2.18
DIV 2
EXP 1 2.12
EXPAND_DIMS 1
FULLY_CONNECTED 9 2.11 2.15 2.17 2.18
GATHER 5 2.13 2.15
GELU 0 2.9 2.9
HARD_SWISH 1
L2_NORMALIZATION 2
LEAKY_RELU 2
LOGISTIC 3
LOG_SOFTMAX 2
MAXIMUM 4
MAX_POOL_2D 3
MEAN 3
MINIMUM 4
MIRROR_PAD 2 2.12
MUL 4 2.6 2.11 2.13
PACK 3 2.13
PAD 3 2.6
PADV2 3 2.6
PRELU 1
QUANTIZE 2 2.7
REDUCE_MAX 3
REDUCE_MIN 3
RELU 3
RELU6 3
RESHAPE 1
RESIZE_BILINEAR 4
RESIZE_NEAREST_NEIGHBOR 4
RSQRT 2 2.15
SHAPE 1
SLICE 5 2.14
SOFTMAX 3
SPACE_TO_BATCH_ND 3 2.12
SPLIT 4
SQRT 1
SQUARED_DIFFERENCE 2
SQUEEZE 2
STRIDED_SLICE 5 2.6 2.14 2.14
SUB 5
SUM 2
TANH 3
TILE 2 2.8
TOPK_V2 2 2.13
TRANSPOSE 5 2.12
TRANSPOSE_CONV 3 2.13 2.15
"""
Release = tuple[int, ...]
_OLDEST: Release = (2, 5)
# LiteRT took the kernels over from TensorFlow and counts by itself since. Measured on its Python packages
# by the highest FULLY_CONNECTED that they load: 13 with 1.0.1 and 1.2.0; 14, which no table names, with 2.1.0
# and 2.3.0; 10 with tflite-runtime 2.14.0.
_LITERT, _LITERT_IS_AT_LEAST, _LITERT_2_IS_AT_LEAST = "ai-edge-litert", (2, 18), (2, 20)
_AS_TENSORFLOW = ("tflite-runtime", "tensorflow")


def _read_table(text: str) -> dict[str, list[Release]]:
    """Return for each operator the release of version 1, 2, ..."""
    table = {}
    for line in text.split("\n"):
        if line:
            operator, oldest, *later = line.split()
            table[operator] = [_OLDEST] * int(oldest) + [_parse(one) for one in later]
    return table


def _parse(version: str) -> Release:
    return tuple(int(part) for part in version.split("."))


_TABLE = _read_table(_RELEASES_OF_VERSIONS)


def release_of_runtime(runtime: str) -> tuple[Release | None, bool]:
    """Return the TensorFlow release whose kernels a runtime has, and whether it may have newer ones.

    Args:
        runtime: Name and version as a device reports them, such as `tflite-runtime 2.14.0`.
    Returns: None where that is unknown.
    """
    name, _, version = runtime.partition(" ")
    numbers = re.match(r"(\d{1,4})\.(\d{1,4})", version)
    if numbers is None:
        return None, True
    release = (int(numbers[1]), int(numbers[2]))
    if name in _AS_TENSORFLOW:
        return (release, False) if release >= _OLDEST else (None, True)
    if name == _LITERT:
        return _LITERT_2_IS_AT_LEAST if release >= (2, 0) else _LITERT_IS_AT_LEAST, True
    return None, True


def find_missing(
    runtime: str, operators: Mapping[str, int], proven: Mapping[str, int]
) -> tuple[list[str], list[str]]:
    """Return which operators a runtime lacks, and of which it is unknown, in words.

    Args:
        runtime: See `release_of_runtime`.
        operators: What a model needs: the highest version of each operator.
        proven: The highest version of each operator that this runtime ran on a device.
    """
    lacking, unknown = [], []
    has, or_newer = release_of_runtime(runtime)
    for operator, version in operators.items():
        if proven.get(operator, 0) >= version:
            continue
        releases = _TABLE.get(operator, [])
        needed = releases[version - 1] if 0 < version <= len(releases) else None
        if needed is not None and has is not None and needed <= has:
            continue
        words = f"{operator} version {version}"
        if needed is None or has is None or or_newer:
            unknown.append(words)
        else:
            lacking.append(f"{words} (since {'.'.join(map(str, needed))})")
    return lacking, unknown
