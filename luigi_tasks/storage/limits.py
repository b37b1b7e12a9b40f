"""Largest size of an object by its key: whoever can write the store must not fill this machine's memory.

The limits are far above what the pipeline writes, and are looked at before anything is read.
"""

from __future__ import annotations

from edge_client.contract.names import INBOX_FOLDER

MIB = 1 << 20

# Of an ending. Weights of the largest networks with their optimizer's state, and scores of a hold-out of
# 200,000 pictures in 1,000 classes, stay below 1 GiB.
_BY_SUFFIX = {
    ".json": 64 * MIB,
    ".tflite": 512 * MIB,
    ".html": 64 * MIB,
    ".csv": 512 * MIB,
    ".npz": 2048 * MIB,
    ".npy": 2048 * MIB,
}
# Lists with a row for each picture: an inventory of a million takes 400 MB.
_LIST_LIMIT_BYTES = 1024 * MIB
_LIST_FOLDERS = ("work/inventories/", "work/batches/", "work/plans/", "work/features/")
_LIST_FILES = ("pictures.json", "moved.json", "doubtful.json")
_OTHER_LIMIT_BYTES = 512 * MIB
# Frames, which devices write: what is larger is not even hashed for a listing.
_INBOX_LIMIT_BYTES = 16 * MIB


def limit_of(key: str) -> int:
    """Return the most bytes that are read of an object whose reader gives no limit."""
    name = key.rpartition("/")[2]
    if key.startswith(f"{INBOX_FOLDER}/"):
        return _INBOX_LIMIT_BYTES
    if name in _LIST_FILES or (key.startswith(_LIST_FOLDERS) and name.endswith(".json")):
        return _LIST_LIMIT_BYTES
    return next((limit for suffix, limit in _BY_SUFFIX.items() if name.endswith(suffix)), _OTHER_LIMIT_BYTES)


def too_large(url: str, size_bytes: int, limit_bytes: int) -> str:
    """Return the message about an object that is not read."""
    return (
        f"{url}: {size_bytes} bytes, at most {limit_bytes} are expected; it was not read. Find out who wrote "
        "it, remove it and run again"
    )
