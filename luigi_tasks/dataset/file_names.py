"""What a name says before a file is read: hidden, evidently no picture, or worth reading.

Content decides whether a file is a picture. Names only spare the listing of 100,000 pictures a read of each,
and keep what operating systems leave on disks out of it.
"""

from __future__ import annotations

_PICTURES = (
    "jpg jpeg jpe jfif jif mpo png apng bmp dib gif webp tif tiff heic heics heif hif avif",
    # formats that are not decoded: such a picture counts as lost
    "jxl jp2 j2k psd psb xcf svg eps ai exr hdr tga ico ppm pgm pbm pnm pcx",
    "raw cr2 cr3 nef arw dng orf rw2 raf",
)
# Files that lie next to pictures and are none.
_FOREIGN = (
    # texts, labels and tables
    "txt md rst json jsonl ndjson xml csv tsv yaml yml toml ini cfg conf log html htm names data",
    "xls xlsx ods doc docx odt pdf rtf tex xmp thm aae dop pp3 on1 lnk url webloc",
    # programs, models, arrays and databases
    "py pyc ipynb js lua c cc cpp h hpp java go rs rb php sh bat ps1 exe dll so",
    "h5 hdf5 onnx pb pt pth tflite keras safetensors",
    "npy npz mat pkl pickle parquet feather arrow tfrecord db sqlite sqlite3 lock cache index",
    # archives, videos and sounds
    "zip tar gz tgz bz2 xz zst 7z rar iso dmg img",
    "mp4 m4v mov avi mkv webm wmv mpg mpeg 3gp mts m2ts wav mp3 m4a aac ogg flac",
    # what cameras and disks keep for themselves
    "dat bin inf ind ctg mrk bdm mpl cpi",
    # unfinished and former files
    "part crdownload download tmp temp bak old swp orig md5 sha1 sha256",
)
PICTURE_SUFFIXES = frozenset(f".{one}" for line in _PICTURES for one in line.split())
FOREIGN_SUFFIXES = frozenset(f".{one}" for line in _FOREIGN for one in line.split())
# Files of a project, which have no suffix.
_FOREIGN_NAMES = frozenset(
    "license licence copying notice authors readme changelog makefile dockerfile".split()  # noqa: SIM905
)

# Folders that operating systems, storage and tools add. They are not entered: their owner may be root.
SYSTEM_FOLDERS = frozenset(
    one.casefold()
    for one in (
        "__MACOSX",
        "Network Trash Folder",
        "Temporary Items",
        "System Volume Information",
        "$RECYCLE.BIN",
        "RECYCLER",
        "RECYCLED",
        "lost+found",
        "LOST.DIR",
        *(f"FOUND.{number:03}" for number in range(10)),
        "@eaDir",
        "@Recycle",
        "@Recently-Snapshot",
        "@tmp",
        "#recycle",
        "#snapshot",
        "_gsdata_",
        "__pycache__",
    )
)


def is_hidden(name: str) -> bool:
    """Whether a folder or file of this name is not part of a dataset; a dot in front hides it."""
    return name[:1] == "." or name.casefold() in SYSTEM_FOLDERS


def has_picture_suffix(name: str) -> bool:
    """Whether a name promises a picture, also in a format that is not decoded."""
    return name[name.rfind(".") :].lower() in PICTURE_SUFFIXES


def is_foreign(name: str) -> bool:
    """Whether a file of this name evidently is no picture; of any other, the content is looked at."""
    return name[name.rfind(".") :].lower() in FOREIGN_SUFFIXES or name.lower() in _FOREIGN_NAMES
