"""The operating point of a release: which of its predictions are sure."""

from __future__ import annotations

import functools
import json

import msgspec
import pytest

from edge_client.contract.documents import Document
from edge_client.contract.errors import InputError
from edge_client.contract.names import RELEASE_FILE
from edge_client.contract.release import TWO_OUTPUTS_SCHEMA, OperatingPoint, release_id
from edge_client.releases import read_release
from tests.fakes.tiny_release import tiny_release

pytestmark = pytest.mark.runtime

POINT = {"precision": 0.95, "thresholds": [0.5, None, 1], "coverage": 0.8}


class ReleasedDocument(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of `ReleaseDocument` in version 0.1 of the client, as far as its decoder requires them."""

    release: str
    model_sha256: str
    model_bytes: int
    labels: tuple[str, ...]
    preprocessing: dict[str, object]
    quantization: str
    operators: dict[str, int]
    self_test: tuple[dict[str, object], ...]
    schema: int = 1


def written(folder, **changes):
    """Write `release.json` of a release with three labels and changed fields; return its folder."""
    content = json.loads(tiny_release()[1][RELEASE_FILE])
    (folder / RELEASE_FILE).write_text(json.dumps({**content, **changes}))
    return folder


def test_a_release_is_sure_from_the_threshold_of_the_label_on(tmp_path):
    point = read_release(written(tmp_path, operating_point=POINT)).operating_point
    assert point is not None
    answers = [(0, 0.5), (0, 0.49), (1, 1.0), (2, 1.0), (2, 0.99)]
    assert [point.is_sure(*answer) for answer in answers] == [True, False, False, True, False]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"thresholds": [0.5, 0.5]}, "2 thresholds for 3 labels"),
        ({"thresholds": [0.5, 0.5, 1.1]}, "threshold 1.1"),
        ({"thresholds": [0.5, -0.1, None]}, "threshold -0.1"),
        ({"thresholds": [0.5, "high", None]}, "float"),
        ({"thresholds": None}, "array"),
        ({"precision": 0}, "precision 0"),
        ({"coverage": 1.5}, "coverage 1.5"),
        ({"least_known": 1.5}, "least_known 1.5"),
    ],
)
def test_a_malformed_operating_point_is_refused_with_the_reason(tmp_path, changes, reason):
    with pytest.raises(InputError, match=f"{RELEASE_FILE}: not a valid ReleaseDocument.*{reason}"):
        read_release(written(tmp_path, operating_point={**POINT, **changes}))


def test_a_release_without_the_new_fields_is_read(tmp_path):
    content = json.loads(tiny_release()[1][RELEASE_FILE])
    del content["operating_point"], content["evidence"]
    (tmp_path / RELEASE_FILE).write_text(json.dumps(content))
    document = read_release(tmp_path)
    assert (document.operating_point, document.evidence) == (None, "")


def test_the_released_client_reads_a_release_with_the_new_fields(tmp_path):
    folder = written(tmp_path, operating_point=POINT, evidence="12 hold-out pictures")
    document = msgspec.json.decode((folder / RELEASE_FILE).read_bytes(), type=ReleasedDocument)
    assert document.release == tiny_release()[0].release


def test_a_stranger_is_not_sure_where_the_model_tells_strangers(tmp_path):
    point = read_release(written(tmp_path, operating_point={**POINT, "least_known": 0.3})).operating_point
    assert point is not None
    answers = [(0, 0.9, 0.3), (0, 0.9, 0.29), (0, 0.4, 0.9), (0, 0.9, None)]
    assert [point.is_sure(*answer) for answer in answers] == [True, False, False, True]


def test_a_release_with_two_outputs_is_refused_by_the_released_client_alone(tmp_path):
    folder = written(tmp_path, schema=TWO_OUTPUTS_SCHEMA)
    assert read_release(folder).release == tiny_release()[0].release
    # That client reads schema 1 of every document, and `release.json` before it downloads the model.
    assert (
        Document.newest_schema
        < msgspec.json.decode((folder / RELEASE_FILE).read_bytes(), type=ReleasedDocument).schema
    )


def test_another_operating_point_is_another_release(tmp_path):
    document = read_release(written(tmp_path))
    point = functools.partial(OperatingPoint, thresholds=(0.9, None, 0.9), coverage=0.5)
    points = [None, point(precision=0.9), point(precision=0.95), point(precision=0.95, least_known=0.5)]
    ids = [release_id(b"model", document.labels, document.preprocessing, "", point) for point in points]
    assert len(set(ids)) == 4
    assert ids[0] == release_id(b"model", document.labels, document.preprocessing)
