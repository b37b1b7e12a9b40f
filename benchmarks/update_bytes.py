"""Download size of the next release: a patch between two successive releases, compared with the full file.

Sign digits, MobileNetV2 1.0/160 with ImageNet weights, mode `head`: one release, then one with 5% more
pictures. Patches: zstd with the first file as its dictionary (what a device would get), and bsdiff4.

    python benchmarks/update_bytes.py PICTURES WEIGHTS [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "benchmarks"), str(REPOSITORY / "scripts")]

import bsdiff4  # noqa: E402 - found through the lines above
import zstandard  # noqa: E402
from pipeline_under_test import PipelineUnderTest  # noqa: E402
from retrain import NEW_SHARE, add, keys_below, mobilenet_v2, run  # noqa: E402

LEVEL = 19


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", type=Path, help="folder of sign digits")
    parser.add_argument("weights", type=Path, help="no-top ImageNet weights of MobileNetV2 1.0/160")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        first, second = two_releases(options.pictures, options.weights, Path(folder))
    patch = zstd_patch(first, second)
    differing = sum(one != two for one, two in zip(first, second, strict=False))
    measured: dict[str, float] = {
        "model_bytes": len(second),
        "differing_bytes": differing + abs(len(first) - len(second)),
        "full_zstd_bytes": len(zstandard.ZstdCompressor(LEVEL).compress(second)),
        "zstd_patch_bytes": len(patch),
        "bsdiff4_bytes": len(bsdiff4.diff(first, second)),
    }
    measured["patch_share"] = round(
        min(measured["zstd_patch_bytes"], measured["bsdiff4_bytes"]) / len(second), 5
    )
    if options.json:
        print(json.dumps({"benchmark": "update_bytes", "figures": measured}))
    else:
        for name, value in measured.items():
            print(f"{name:<18} {value:>12}")
    return 0


def two_releases(pictures: Path, weights: Path, folder: Path) -> tuple[bytes, bytes]:
    """Return the files of two successive candidates."""
    with PipelineUnderTest(folder, settings=mobilenet_v2(weights)) as pipeline:
        paths = sorted(one for one in pictures.glob("*/*") if one.is_file())
        late = paths[:: round(1 / NEW_SHARE)]
        models = []
        for part in (sorted(set(paths) - set(late)), late):
            add(part, pictures, pipeline.pictures)
            run(pipeline, "QuantizeModel")
            key = [one for one in keys_below(pipeline, pipeline.name) if one.endswith("model.tflite")][-1]
            models.append(
                pipeline.store.client().get_object(Bucket=pipeline.store.bucket, Key=key)["Body"].read()
            )
    return models[0], models[1]


def zstd_patch(old: bytes, new: bytes) -> bytes:
    """Return the frame that rebuilds `new` from `old`, and prove it."""
    before = zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    # The window must reach over the whole old file, or its beginning cannot be referred to.
    window = max(len(old) + len(new), 1 << 10).bit_length()
    parameters = zstandard.ZstdCompressionParameters.from_level(LEVEL, window_log=window, enable_ldm=True)
    patch = zstandard.ZstdCompressor(dict_data=before, compression_params=parameters).compress(new)
    rebuilt = zstandard.ZstdDecompressor(dict_data=before, max_window_size=1 << 27).decompress(patch)
    if rebuilt != new:
        sys.exit("the patch does not rebuild the file")
    return patch


if __name__ == "__main__":
    sys.exit(main())
