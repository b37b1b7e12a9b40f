"""Everything that reads what others wrote, each behind one function of bytes.

The property is the same for all: the bytes are taken, or refused with one of the errors that the reader
declares; nothing else comes out, and nothing is written outside its own folder. `test_parsers.py` holds it
on a few hundred examples at each run of the tests, `scripts/fuzz` on as many as there is time for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from tuf.api.exceptions import DownloadError
from tuf.api.metadata import Metadata

from edge_client.contract import messages, release
from edge_client.contract.documents import Document, decode_document, encode_document
from edge_client.contract.errors import DeviceError, EdgeError, InputError, TransportError, TrustError
from edge_client.contract.messages import Announcement
from edge_client.contract.names import LABELS_FILE, MODEL_FILE, RELEASE_FILE, release_target
from edge_client.contract.preprocessing import decode_picture, fit_pixels
from edge_client.contract.rollout import EVERYBODY
from edge_client.contract.structure import check_structure, count_scans, is_heavy_directory
from edge_client.inference.classifier import classifier_from_release
from edge_client.inference.file_metadata import read_associated, read_metadata
from edge_client.inference.graph import read_graph
from edge_client.inference.label_file import read_embedded_labels, read_labels, read_two_labels
from edge_client.last_picture import GIVEN_UP_FILE, GivenUpFile, GivenUpFiles, LastPicture
from edge_client.releases import needed_files, read_release
from edge_client.repository.bundle_fetcher import BundleFetcher
from edge_client.repository.fetcher import Fetcher, absent
from edge_client.repository.trusted import TrustedRepository
from edge_client.sources.pipe import PictureSplitter
from edge_client.update.patches import unpack
from edge_client.update.selftest import SelfTestError, Verdict
from edge_client.update.triggers import read_announcement
from tests.fakes.described_model import Labels, describe, tiny
from tests.fakes.patches import zstd_patch
from tests.fakes.self_test import run_self_test
from tests.fakes.tiny_model import tiny_model
from tests.fakes.tiny_release import tiny_release, write_release
from tests.fakes.tuf_repository import TufRepository

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LIMIT_BYTES = 1 << 20
_BASE_URL = "http://store/b"


@dataclasses.dataclass(frozen=True)
class Target:
    """One reader.

    Attributes:
        read: Gets the bytes, and a folder that is its own.
        errors: What it may raise.
        seeds: Real examples.
    """

    read: Callable[[bytes, Path], None]
    errors: tuple[type[Exception], ...]
    seeds: tuple[bytes, ...]

    def check(self, data: bytes) -> bool:
        """Whether the bytes are taken.

        Raises: AssertionError if something was written outside the folder; whatever is no declared error.
        """
        with sandbox() as folder:
            try:
                self.read(data, folder)
            except self.errors:
                taken = False
            else:
                taken = True
            around = sorted(path.name for path in folder.parent.iterdir())
            assert around == [folder.name], f"written outside its folder: {around}"
            return taken

    def check_quietly(self, data: bytes) -> None:
        """As `check`, for atheris, which allows no answer."""
        self.check(data)


@contextlib.contextmanager
def sandbox() -> Iterator[Path]:
    """Give a folder within an otherwise empty one; in memory where the machine has such a place."""
    shared_memory = Path("/dev/shm")  # noqa: S108 - a folder of an unguessable name is made within
    place = shared_memory if os.access(shared_memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=place) as outer:
        folder = Path(outer) / "own"
        folder.mkdir()
        yield folder


# Documents


def _documents() -> list[type[Document]]:
    """All that cross a boundary."""
    found = [
        value
        for module in (messages, release)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Document) and value is not Document
    ]
    return [*dict.fromkeys(found), Verdict]


DOCUMENTS = _documents()


def _read_document(data: bytes, _folder: Path) -> None:
    """The first byte chooses the kind. What is read is written again, and then reads the same."""
    kind = DOCUMENTS[data[0] % len(DOCUMENTS)] if data else DOCUMENTS[0]
    document = decode_document(kind, data[1:], source="fuzz", limit_bytes=LIMIT_BYTES)
    again = encode_document(document)
    assert decode_document(kind, again, source="again", limit_bytes=4 * LIMIT_BYTES) == document


def _read_announcement(data: bytes, _folder: Path) -> None:
    release_id = read_announcement(data, topic="edge/f/channels/stable", channel="stable")
    assert release_id.isascii()
    assert not set(release_id) & set("/\\\0\n+#")


def _read_release(data: bytes, folder: Path) -> None:
    (folder / RELEASE_FILE).write_bytes(data)
    for name in needed_files(read_release(folder)):
        assert (folder / name).resolve().parent == folder.resolve()


def _read_labels(data: bytes, folder: Path) -> None:
    """Through the door that the daemon takes; the model is a good one."""
    write_release(folder)
    (folder / LABELS_FILE).write_bytes(data)
    classifier_from_release(folder)


# Patches, bundles, pictures, models

_MODELS = tiny_model(0), tiny_model(1)


def _unpack_patch(data: bytes, _folder: Path) -> None:
    """The first byte chooses the promised size, and whether there is a base."""
    choice = data[0] if data else 0
    promised = (0, 1, len(_MODELS[1]), 1 << 20)[choice % 4]
    model = unpack(data[1:], _MODELS[0] if choice & 4 else b"", promised)
    assert len(model) == promised


def _read_bundle(data: bytes, folder: Path) -> None:
    path = folder / "bundle.tar"
    path.write_bytes(_with_checksums(data))
    fetcher = BundleFetcher(path)
    with contextlib.closing(fetcher):
        for name in (*fetcher._members, "metadata/timestamp.json", "../../evil"):
            for offset in (0, 7):
                _read_some(fetcher, f"bundle:{path}/{name}", offset)
    assert [one.name for one in folder.iterdir()] == ["bundle.tar"]


def _with_checksums(data: bytes) -> bytes:
    """Make the headers of a tar right in their checksums: changed ones would all end there otherwise."""
    tar = bytearray(data)
    for start in range(0, len(tar) - tarfile.BLOCKSIZE + 1, tarfile.BLOCKSIZE):
        if tar[start + 257 : start + 262] == b"ustar":
            tar[start + 148 : start + 156] = b" " * 8
            tar[start + 148 : start + 156] = b"%06o\0 " % sum(tar[start : start + tarfile.BLOCKSIZE])
    return bytes(tar)


def _read_some(fetcher: Fetcher, url: str, offset: int) -> None:
    """Read as `transfer.py` does: no more than was signed."""
    with contextlib.suppress(DownloadError):
        received = 0
        for chunk in fetcher.fetch_from(url, offset)[1]:
            received += len(chunk)
            if received > LIMIT_BYTES:
                return


def _check_bundle(data: bytes, folder: Path) -> None:
    """The same, and all that follows of an import."""
    path = folder / "bundle.tar"
    path.write_bytes(_with_checksums(data))
    _check(BundleFetcher(path), f"bundle:{path}", folder)


def _decode_picture(data: bytes, _folder: Path) -> None:
    pixels = decode_picture(data)
    assert pixels.dtype == np.uint8
    assert fit_pixels(pixels, 8, 8).shape == (8, 8, 3)


def _check_structure(data: bytes, _folder: Path) -> None:
    """What counts the scans says the same as a plain look at the bytes, at most."""
    assert check_structure(data, "fuzz") in {True, False}
    assert count_scans(data, 1000) <= data.count(b"\xff\xda")
    is_heavy_directory(data)


def _split_pictures(data: bytes, _folder: Path) -> None:
    """A stream in pieces of any size, which the first byte chooses, holds the same pictures as the whole."""
    size = 1 + (data[0] if data else 0)
    splitter, stream = PictureSplitter(), data[1:]
    found = [one for at in range(0, len(stream), size) for one in splitter.feed(stream[at : at + size])]
    assert found == list(PictureSplitter().feed(stream))
    assert all(one in stream for one in found)


def _read_given_up(data: bytes, folder: Path) -> None:
    """Whatever the file says, the daemon starts."""
    (folder / GIVEN_UP_FILE).write_bytes(data)
    LastPicture(folder, folder).close()


def _read_model_file(data: bytes, _folder: Path) -> None:
    """What is read of a model file before the runtime gets it."""
    found = read_metadata(read_graph(data).metadata)
    for output in found.outputs:
        read_associated(data, output.labels_file)


def _read_labels_file(data: bytes, _folder: Path) -> None:
    for outputs in (1, 3):
        assert all(read_labels(data, outputs))
    assert all(read_two_labels(data) + read_embedded_labels(data))


def _try_model(data: bytes, folder: Path) -> None:
    """In the child that tries a release; an interpreter may crash on this, the parent may not."""
    write_release(folder, model=data)
    run_self_test(folder, timeout_s=20, memory_bytes=1 << 30)


# Signed metadata through the real client


class _Memory(Fetcher):
    """A store in memory."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.bytes_pulled = 0
        self._objects = objects

    def _fetch(self, url: str) -> Iterator[bytes]:
        return self.fetch_from(url, 0)[1]

    def fetch_from(self, url: str, offset: int) -> tuple[int, Iterator[bytes]]:
        data = self._objects.get(url.removeprefix(f"{_BASE_URL}/"))
        if data is None:
            raise absent(url, "not there")
        return offset, iter([data[offset:]])

    def close(self) -> None:
        """Nothing is open."""


def _repository() -> TufRepository:
    repository = TufRepository()
    repository.rotate("timestamp")
    release = repository.publish_tiny(0).release
    repository.delegate()
    repository.roll_out(id="1", release=release, threshold=EVERYBODY)
    return repository


_REPOSITORY = _repository()
_ROLES = ("timestamp", "snapshot", "targets", "rollouts", "root")
_OBJECTS = (
    "metadata/timestamp.json",
    *(f"metadata/{version}.{role}.json" for version, role in zip((3, 2, 2, 2), _ROLES[1:], strict=True)),
    *(path for path in _REPOSITORY.objects if path.endswith(".stable.json")),
    _REPOSITORY.find(RELEASE_FILE),
)


def _check(fetcher: Fetcher, base_url: str, folder: Path) -> None:
    """Check for an update as `check.py` does, up to the names of the files to fetch."""
    staged = folder / "staged"
    staged.mkdir()
    with TrustedRepository(_REPOSITORY.root, base_url, folder / "metadata", fetcher) as trusted:
        trusted.refresh()
        trusted.rollout("stable")
        found = trusted.channel("stable").release
        trusted.fetch(release_target(found, RELEASE_FILE), staged)
        names = needed_files(read_release(staged))
        trusted.fetch(release_target(found, names[0]), staged)
        trusted.fetch(release_target(found, MODEL_FILE), staged)


def _read_forged(data: bytes, folder: Path) -> None:
    """The first byte chooses the object of the store that the rest stands for."""
    path = _OBJECTS[data[0] % len(_OBJECTS)] if data else _OBJECTS[0]
    _check(_Memory({**_REPOSITORY.objects, path: data[1:]}), _BASE_URL, folder)


def _read_signed(data: bytes, folder: Path) -> None:
    """The same with the signatures of the right keys: a pipeline gone wrong, or a thief of keys."""
    choice = (data[0] if data else 0) % len(_ROLES)
    role, path = _ROLES[choice], _OBJECTS[choice]
    _check(_Memory({**_REPOSITORY.objects, path: _sign(role, data[1:])}), _BASE_URL, folder)


def _sign(role: str, signed: bytes) -> bytes:
    """Sign what shall be the `signed` part; what cannot be signed goes as it is."""
    try:
        metadata = Metadata.from_dict({"signed": json.loads(signed), "signatures": []})
        metadata.sign(_REPOSITORY.signers[role])
        return metadata.to_bytes()
    except Exception:  # noqa: BLE001 - the signing side is not under test
        return b'{"signed": ' + signed + b', "signatures": []}'


# Seeds


def _model_files() -> tuple[bytes, ...]:
    """A model with all metadata that are read, and one without."""
    told = [[Labels(b"a\nb\nc\n"), Labels(b"A\nB\nC\n", name="en.txt", locale="en")]]
    file = tiny(kind="float32")
    described = describe(file, mean=[127.5], std=[127.5], outputs=told, units=[2, 3], scores=True)
    return described, file


def _pictures() -> tuple[bytes, ...]:
    image = Image.fromarray(np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3))
    modes = {"PNG": "RGB", "JPEG": "RGB", "BMP": "RGB", "GIF": "P", "WEBP": "RGB", "TIFF": "RGB"}
    seeds = []
    for kind, mode in [*modes.items(), ("PNG", "P"), ("TIFF", "CMYK"), ("JPEG", "L"), ("PNG", "I;16")]:
        out = io.BytesIO()
        (Image.new("I;16", (4, 4)) if mode == "I;16" else image.convert(mode)).save(out, kind)
        seeds.append(out.getvalue())
    return tuple(seeds)


def _bundles() -> tuple[bytes, ...]:
    """One that can be imported, and small ones of each form that tar files have."""
    small = {name: data[:100] for name, data in _REPOSITORY.objects.items() if name.startswith("metadata")}
    whole = {name: data for name, data in _REPOSITORY.objects.items() if "selftest" not in name}
    sparse = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "1000"}
    return (
        _tar(whole, tarfile.PAX_FORMAT),
        _tar(small, tarfile.USTAR_FORMAT),
        _tar(small, tarfile.GNU_FORMAT, name=f"metadata/{'x' * 120}"),
        _tar(small, tarfile.PAX_FORMAT, pax={"size": "100", "path": "metadata/timestamp.json"}),
        _tar(small, tarfile.PAX_FORMAT, pax=sparse),
        _tar(small, tarfile.GNU_FORMAT, kind=tarfile.GNUTYPE_SPARSE),
    )


def _tar(
    objects: dict[str, bytes],
    form: int,
    *,
    name: str = "metadata/more",
    kind: bytes = tarfile.REGTYPE,
    pax: dict[str, str] | None = None,
) -> bytes:
    """Return a tar file with objects, and one more member that is out of the ordinary."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for key, data in objects.items():
            member = tarfile.TarInfo(key)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        special = tarfile.TarInfo(name)
        special.type, special.pax_headers, special.size = kind, pax or {}, 512
        tar.addfile(special, io.BytesIO(b"1\n0\n512\n".ljust(512, b"\0")))
    return out.getvalue()


def _metadata_seeds() -> tuple[bytes, ...]:
    return tuple(bytes([n]) + _REPOSITORY.objects[path] for n, path in enumerate(_OBJECTS))


def _signed_seeds() -> tuple[bytes, ...]:
    signed = [
        json.dumps(json.loads(_REPOSITORY.objects[path])["signed"]).encode()
        for path in _OBJECTS[: len(_ROLES)]
    ]
    signed.append(signed[2].replace(b'"name": "rollouts"', b'"name": 0'))  # python-tuf takes it for a name
    return tuple(bytes([2 if n == len(_ROLES) else n]) + data for n, data in enumerate(signed))


def _document_seeds() -> tuple[bytes, ...]:
    document, _ = tiny_release(0, operating_point=_POINT)
    hold_out = release.HoldOut(labels=(1, 2, 3), confidence=(0,) * release.CONFIDENCE_BINS)
    known: list[Document] = [
        document,
        hold_out,
        document.self_test[0],
        document.preprocessing,
        _POINT,
        release.ChannelDocument(channel="stable", release=document.release, withdrawn=("a",)),
        _ANNOUNCEMENT,
        messages.DeviceStatus(device="a", channel="stable", state="serving"),
        Verdict(cases=3, failure=None, ending=""),
    ]
    return tuple(bytes([DOCUMENTS.index(type(one))]) + encode_document(one) for one in known)


_ANNOUNCEMENT = Announcement(
    channel="stable", release="0123456789abcdef0123", announced_at="2026-01-01T00:00:00Z"
)
_PATCHES = tuple(
    bytes([choice]) + zstd_patch(_MODELS[1], base) for choice, base in ((6, _MODELS[0]), (2, b""))
)
_POINT = release.OperatingPoint(precision=0.95, thresholds=(0.5, None, 1.0), coverage=0.8)
_DECLARED = (InputError, TrustError, TransportError)

_GIVEN_UP = GivenUpFile(path="/camera/door.png", size_bytes=7, mtime_ns=1)
TARGETS = {
    "announcement": Target(_read_announcement, (InputError,), (encode_document(_ANNOUNCEMENT),)),
    "document": Target(_read_document, (InputError,), _document_seeds()),
    "release": Target(
        _read_release,
        (InputError,),
        tuple(encode_document(tiny_release(0, operating_point=one)[0]) for one in (None, _POINT)),
    ),
    "labels": Target(_read_labels, (InputError,), (b"red\ngreen\nblue\n", "größe\r\n".encode("utf-16"))),
    "patch": Target(_unpack_patch, (InputError,), _PATCHES),
    "bundle": Target(_read_bundle, (InputError,), _bundles()),
    "import": Target(_check_bundle, _DECLARED, _bundles()),
    "metadata": Target(_read_forged, _DECLARED, _metadata_seeds()),
    "signed": Target(_read_signed, _DECLARED, _signed_seeds()),
    "picture": Target(_decode_picture, (InputError,), _pictures()),
    "structure": Target(_check_structure, (InputError,), _pictures()),
    "pipe": Target(_split_pictures, (), tuple(b"\x10" + one * 2 for one in _pictures()[:2])),
    "given up": Target(_read_given_up, (), (encode_document(GivenUpFiles(files=(_GIVEN_UP,))),)),
    "model file": Target(_read_model_file, (InputError,), _model_files()),
    "labels file": Target(
        _read_labels_file, (InputError,), (b"0 red\n1 green\n2 blue\n", b'{"0": ["n1", "a"]}')
    ),
    "model": Target(_try_model, (SelfTestError,), _MODELS),
}
assert issubclass(SelfTestError, DeviceError)
assert all(issubclass(error, EdgeError) for target in TARGETS.values() for error in target.errors)
