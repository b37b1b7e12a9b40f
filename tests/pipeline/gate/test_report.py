"""The page that a person reads after a run."""

from __future__ import annotations

import html.parser
import io
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from edge_client.contract.release import OperatingPoint
from luigi_tasks.dataset.records import LeftOut, Snapshot
from luigi_tasks.gate.confidence import describe_confidence
from luigi_tasks.gate.measure import Answers
from luigi_tasks.gate.records import (
    ClassMetrics,
    Confidence,
    ErrorRates,
    Evaluation,
    Measurement,
    Mistake,
    SchemeResult,
)
from luigi_tasks.gate.report import MATRIX_CLASSES, Past, draw_curve, render_report
from luigi_tasks.gate.verdict import judge
from luigi_tasks.gate.words import megabytes, percent
from luigi_tasks.quantization.records import CalibrationSet, QuantizationRecord
from luigi_tasks.release.history import past_releases
from luigi_tasks.training.confidence import measure_reliability
from luigi_tasks.training.records import DoubtedLabel, TrainingRecord
from tests.fakes.gate_facts import LIMITS, facts, found, measured, rival

if TYPE_CHECKING:
    from numpy.typing import NDArray

VOID = {"meta", "img", "line", "circle", "polyline", "text", "br", "link"}


class Page(html.parser.HTMLParser):
    """What a browser would make of a page: elements, their attributes, text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def measurement(labels: tuple[str, ...], wrong: int = 0) -> Measurement:
    """Ten pictures a class; of the first class, `wrong` are taken for the second."""
    confusion = np.eye(len(labels), dtype=int) * 10
    confusion[0, 0] -= wrong
    confusion[0, 1] += wrong
    mistakes = tuple(
        Mistake(
            path=f"{labels[0]}/{number}.jpg",
            sha256=f"{number:064x}",
            truth=labels[0],
            predicted=labels[1],
            confidence=0.9,
        )
        for number in range(wrong)
    )
    return Measurement(
        accuracy=1 - wrong / (10 * len(labels)),
        pictures=10 * len(labels),
        labels=labels,
        classes=tuple(ClassMetrics(label=one, support=10, precision=1, recall=1) for one in labels),
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
        latency_ms_p50=1.25,
        latency_ms_p90=1.5,
        runtime="test runtime 1.0",
        mistakes=mistakes,
    )


def picture(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def render(
    labels: tuple[str, ...] = ("cat", "dog"),
    wrong: int = 1,
    *,
    champion: bool = True,
    history: dict[str, tuple[float, ...]] | None = None,
    past: tuple[Past, ...] = (),
    thumbnails: dict[str, bytes] | None = None,
    settings: dict[str, str] | None = None,
    left_out: tuple[LeftOut, ...] = (),
    schemes: tuple[SchemeResult, ...] = (),
    candidate: Measurement | None = None,
    error_rates: ErrorRates | None = None,
    confidence: Confidence | None = None,
    doubted: tuple[DoubtedLabel, ...] = (),
) -> Page:
    deployed = candidate or measurement(labels)
    candidate = candidate or measurement(labels, wrong)
    evaluation = Evaluation(
        release="0123456789abcdef0123",
        candidate=candidate,
        float_model=deployed,
        champion=deployed if champion else None,
        champion_release="feedfeedfeedfeedfeed" if champion else None,
        champion_note="How it was compared.",
        model_bytes=2_738_448,
        verdict=judge(
            facts(candidate, deployed, rival(wrong, 0, 10 * len(labels), accuracy=1.0) if champion else None),
            LIMITS,
        ),
        at="2026-01-02T03:04:05.000+00:00",
        schemes=schemes,
        error_rates=error_rates,
        confidence=confidence,
    )
    page = render_report(
        evaluation,
        snapshot=Snapshot(digest="abcd" * 5, labels=labels, pictures=(), left_out=left_out),
        training=TrainingRecord(
            history={"loss": (1.0, 0.5), "accuracy": (0.5, 0.9)} if history is None else history,
            made_with={},
            seconds=12.5,
            train_pictures=100,
            class_drop_points=0.0,
            float_drop_points=0.0,
            doubted=doubted,
        ),
        tuned=None,
        quantization=QuantizationRecord(
            scheme="int8",
            calibration=(CalibrationSet(backbone="b", scheme="int8", pictures=("a",)),),
            operators={"CONV_2D": 3},
            made_with={"tensorflow": "2.21.0"},
        ),
        settings={"training.epochs": "40"} if settings is None else settings,
        thumbnails={"0" * 64: picture(9)} if thumbnails is None else thumbnails,
        left_out_place="file:///store/left-out.csv",
        past=past,
    )
    return Page(page)


def test_a_candidate_that_passed_is_reported_with_its_metrics():
    page = render(wrong=0)
    assert page.open == []
    for text in (
        "Passed the gate",
        "100.00 %",
        "2.74 MB",
        "1.25 ms",
        "How it was compared.",
        "CONV_2D",
        "2.21.0",
    ):
        assert text in page.text
    assert "Refused" not in page.text


def test_refused_gives_every_reason():
    page = render(wrong=8)
    assert "Refused by the gate" in page.text
    assert "hold-out accuracy 0.6000 is below [gate] min_accuracy 0.8" in page.text
    assert "loss against the deployed model 40.00 points is more than chance" in page.text
    assert "Passed the gate" not in page.text


THIN = measured(
    0.95,
    found("cat", 100, 0.95),
    found("dog", 30, 0.9, groups=3),
    pictures=130,
    groups=103,
)


def test_thin_evidence_is_on_top_with_how_many_more_pictures_would_do():
    page = render(candidate=THIN, champion=False)
    assert "✓ Passed, on thin evidence" in page.text
    reason = "'dog' has 3 in the hold-out: about 5 more groups of pictures of 'dog'"
    assert f"Not enough evidence: {reason}" in page.text
    assert "? not enough evidence" in page.text
    assert "It is not published" not in page.text


def test_a_candidate_that_is_held_reads_as_held_and_not_as_refused():
    page = render(candidate=THIN)
    assert "? Held: not enough evidence" in page.text
    assert page.text.count("about 5 more groups of pictures of 'dog'") == 1
    assert "It is not published, and not tried again until data or settings change." in page.text
    assert "Refused" not in page.text


def test_every_accuracy_has_its_interval():
    """Wilson, for the number of groups: 0.95 of 103."""
    page = render(candidate=THIN, champion=False)
    assert "88.94 to 97.82 %, of 130 pictures that training never saw, worth 103" in page.text
    assert "this candidate 95.00 % 88.94 to 97.82 %" in page.text
    assert "30 3 groups" in page.text
    scheme = SchemeResult(
        scheme="int8",
        accuracy=0.25,
        float_drop_points=61.5,
        class_drop_points=80.25,
        model_bytes=2_738_448,
        latency_ms_p50=1.71,
        interval=(0.2, 0.3),
    )
    assert "int8 25.00 % 20.00 to 30.00 %" in render(schemes=(scheme,)).text


def test_error_rates_of_the_gate_are_shown_for_this_holdout():
    rates = ErrorRates(
        units=400,
        apart=0.05,
        worse_points=3.0,
        equal_refused=0.031,
        equal_held=0.004,
        worse_passed=0.165,
        worse_refused=0.5,
    )
    page = render(error_rates=rates)
    assert "an equal model is refused in 3.1% of comparisons and held in 0.4%" in page.text


def test_nothing_is_loaded_from_elsewhere_and_nothing_runs():
    page = render(wrong=3, past=(Past("r1", 0.9, "2026-01-01T00:00:00"),))
    assert not {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object", "form", "a", "base"}
    addresses = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in {"src", "href"}
    ]
    assert addresses
    assert all(str(value).startswith("data:image/png;base64,") for value in addresses)
    policies = [
        one["content"] for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=http://evil.example/ onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style></title><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% raise %}",
    "\u202egnp.exe",
    "日本語",
    "x" * 300,
)


def test_hostile_names_stay_text_everywhere():
    page = render(
        HOSTILE,
        wrong=2,
        settings={label: label for label in HOSTILE},
        left_out=tuple(LeftOut(one, one, one) for one in HOSTILE),
        past=tuple(Past(label, 0.9, label) for label in HOSTILE),
        history=dict.fromkeys(HOSTILE, (0.1, 0.2)),
    )
    assert page.open == []
    assert not page.all("script")
    assert all("src" not in one or str(one["src"]).startswith("data:") for one in page.all("img"))
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    whole = "".join(page.texts)
    assert all(label in whole for label in HOSTILE)


def test_what_is_left_out_is_counted_by_reason_and_named_with_where_the_rest_is():
    broken = tuple(LeftOut(f"cat/{number:02}.jpg", "undecodable", f"fault {number}") for number in range(25))
    page = render(left_out=(*broken, LeftOut("dog/", "class without usable pictures", "no picture in it")))
    assert "25 undecodable" in page.text
    assert "cat/19.jpg" in page.text
    assert "fault 19" in page.text
    assert "cat/20.jpg" not in page.text
    assert "and 5 more" in page.text
    assert "1 class without usable pictures" in page.text
    assert "file:///store/left-out.csv" in page.text
    assert "Left out" not in render().text


def test_hostile_names_cannot_turn_the_text_around_them():
    """A right-to-left override inside <bdi> ends with it."""
    page = render(("\u202egnp.exe", "dog"), wrong=2)
    assert len(page.all("bdi")) >= 6


def test_mistakes_show_their_pictures_or_that_one_is_missing():
    page = render(wrong=2)
    assert len(page.all("img")) == 1
    assert page.text.count("no picture") == 1
    assert "cat/1.jpg" in page.text


def test_matrix_shows_each_cell_and_the_confusions_are_listed():
    page = render(wrong=3)
    titles = [one.get("title") for one in page.all("td")]
    assert "cat taken for dog: 3 of 10" in titles
    assert "dog taken for dog: 10 of 10" in titles
    assert "3 of 10" in page.text


@pytest.mark.parametrize(("classes", "shown"), [(MATRIX_CLASSES, True), (MATRIX_CLASSES + 1, False)])
def test_more_classes_than_a_matrix_can_show_are_listed_instead(classes, shown):
    page = render(tuple(f"class {number}" for number in range(classes)), wrong=3)
    assert any(one.get("class", "") == "matrix dense" for one in page.all("table")) == shown
    assert ("too many for a matrix" in page.text) != shown
    assert "3 of 10" in page.text


def test_first_release_has_no_champion_and_nopast_releases():
    page = render(champion=False)
    assert "nothing to compare with" in page.text
    assert "This is the first on this channel." in page.text


def test_past_releases_are_drawn_with_their_metrics():
    page = render(past=(Past("r1", 0.9, "2026-01-01T00:00:00"), Past("r2", 0.95, "2026-01-02T00:00:00")))
    assert "r1, 2026-01-01T00:00:00: 90.00 %" in page.text
    assert "this candidate: 95.00 %" in page.text


def test_learning_curves_have_a_point_for_each_epoch():
    page = render(history={"loss": (2.0, 1.0, 0.5), "validation accuracy": (0.5, 0.75)})
    assert [len(str(one["points"]).split()) for one in page.all("polyline")] == [3, 2]
    assert "epoch 3: 0.500" in page.text
    assert "epoch 2: 75.00 %" in page.text


def test_every_scheme_that_was_tried_shows_its_metrics():
    page = render(
        schemes=(
            SchemeResult(
                scheme="int8",
                accuracy=0.25,
                float_drop_points=61.5,
                class_drop_points=80.25,
                model_bytes=2_738_448,
                latency_ms_p50=1.71,
            ),
            SchemeResult(
                scheme="mixed",
                accuracy=0.875,
                float_drop_points=-0.5,
                class_drop_points=0.0,
                model_bytes=3_100_000,
                latency_ms_p50=2.62,
            ),
        )
    )
    assert "int8 25.00 % 61.50 80.25 2.74 MB 1.71" in page.text
    assert "mixed 87.50 % -0.50 0.00 3.10 MB 2.62" in page.text
    assert "lost more against float than the gate allows" not in render().text


def test_every_release_that_is_still_signed_is_drawn():
    documents = {
        number: SimpleNamespace(
            release=f"r{number}", accuracy=0.9, created_at="2026-01-01", parent=number - 1 if number else None
        )
        for number in range(40)
    }
    found = past_releases(SimpleNamespace(release=documents.get), 39)  # type: ignore[arg-type]
    assert [one.release for one in found] == [f"r{number}" for number in range(40)]


@pytest.mark.parametrize(
    "history",
    [{}, {"loss": ()}, {"loss": (1.0,)}, {"loss": (0.0, 0.0)}, {"loss": (float("nan"), float("inf"), 1.0)}],
    ids=str,
)
def test_odd_learning_curves_still_make_a_page(history):
    page = render(history=history)
    points = [one["points"] for one in page.all("polyline")]
    assert not any(word in str(points) for word in ("nan", "inf"))


@pytest.mark.parametrize("values", [(1.0, 5.0, 2.0), (0.0,), (3.0, 3.0), (-1.0, 1e9)], ids=str)
def test_curves_stay_inside_their_drawing(values):
    chart = draw_curve("loss", values)
    assert len(chart.points) == len(values)
    assert all(0 <= point.x <= chart.width and 0 <= point.y <= chart.height for point in chart.points)


def test_only_all_right_reads_as_100_percent():
    assert percent(1.0) == "100.00 %"
    assert percent(0.99999) == "99.99 %"
    assert percent(0.9512) == "95.12 %"
    assert percent(0.29) == "29.00 %"
    assert percent(0) == "0.00 %"


def test_sizes_are_decimal():
    assert megabytes(2_738_448) == "2.74 MB"
    assert megabytes(1_900) == "1.9 kB"


def confidence_of_two_classes(
    point: OperatingPoint | None, known: NDArray[np.float64] | None = None
) -> Confidence:
    """Forty answers: of those with 0.9, nine in ten are right, of those with 0.6 one in two."""
    scores = np.array([[0.9, 0.1], [0.4, 0.6]] * 20, np.float32)
    truths = ["cat", "dog"] * 18 + ["dog", "cat"] * 2
    training = TrainingRecord(
        history={},
        made_with={},
        seconds=1.0,
        train_pictures=9,
        float_drop_points=0.0,
        class_drop_points=0.0,
        temperature=0.5,
        uncalibrated=measure_reliability(np.full((40, 2), 0.5), np.array([0, 1] * 20)),
    )
    return describe_confidence(("cat", "dog"), truths, Answers(scores, known), training, point)


def test_reliability_and_sure_answers_are_shown():
    point = OperatingPoint(precision=0.9, thresholds=(0.8, None), coverage=0.4)
    confidence = confidence_of_two_classes(point)
    assert confidence.coverage == 0.5
    assert confidence.precision == 0.9
    assert [one.sure for one in confidence.classes] == [20, 0]
    page = render(confidence=confidence)
    assert page.open == []
    assert "50.00 % of the hold-out is sure, and 90.00 % of that is right" in page.text
    assert "cat 0.800 20 20 18 dog never 20 0 0" in page.text
    dots = [one for one in page.all("circle") if one["class" if "class" in one else "r"] == "after"]
    assert len(dots) == len(confidence.after.bins) == 10


def test_what_the_model_does_not_know_is_not_sure():
    """As on a device."""
    point = OperatingPoint(precision=0.9, thresholds=(0.8, None), coverage=0.4, least_known=0.5)
    confidence = confidence_of_two_classes(point, np.repeat([0.2, 0.9], 20))
    assert confidence.coverage == 0.25
    assert confidence.classes[0].sure == 10


def test_a_release_that_is_sure_of_nothing_says_so():
    point = OperatingPoint(precision=0.9, thresholds=(None, None), coverage=0.0)
    page = render(confidence=confidence_of_two_classes(point))
    assert "None of the hold-out is sure; [release] precision asks for 90.00 %" in page.text


def test_without_an_operating_point_every_answer_is_sure():
    confidence = confidence_of_two_classes(None)
    assert (confidence.coverage, confidence.wanted_precision) == (1.0, None)
    assert "Every answer is sure" in render(confidence=confidence).text
    assert "Reliability" not in render().text, "a record from before has none"


def test_doubtful_labels_are_shown_with_the_task_that_lists_all():
    doubted = DoubtedLabel(sha256="0" * 64, label="cat", probable="<dog>", chance=0.87)
    page = render(doubted=(doubted,))
    assert page.open == []
    assert "in cat probably <dog> 87 % likely wrong" in page.text
    assert "DoubtfulLabels" in page.text
    assert "Doubtful labels" not in render().text
