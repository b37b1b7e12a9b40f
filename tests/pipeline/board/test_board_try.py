"""A picture is dropped on the page *Try*, and answered as a device with that release answers."""

from __future__ import annotations

import base64
import concurrent.futures
import functools
import hashlib
import io
import json
import re
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from edge_client.contract.names import MODEL_FILE, release_target
from edge_client.contract.preprocessing import PREPROCESSING_ID, decode_picture, fit_pixels
from edge_client.contract.release import Normalization, OperatingPoint, Preprocessing
from edge_client.contract.rollout import RolloutDocument
from edge_client.contract.times import utc_now
from edge_client.inference.classifier import classifier_from_release
from luigi_tasks.board.access.tokens import Tokens
from luigi_tasks.labelling.inbox import list_inbox, read_frame
from luigi_tasks.release.channel import Pointers, point_channel
from luigi_tasks.settings.values import StoreSettings
from luigi_tasks.storage.folder_store import FolderStore
from tests.conftest import SHARED_DATA
from tests.fakes.command_fleet import CommandFleet
from tests.fakes.running_board import RunningBoard
from tests.fakes.scans import with_scans
from tests.fakes.tiny_model import plain_picture, tiny_model
from tests.fakes.tiny_release import pack_release, png, tiny_release
from tests.pipeline.board.conftest import board_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edge_client.contract.release import ReleaseDocument

# What a channel's release consists of: its document and files.
Files = tuple["ReleaseDocument", dict[str, bytes]]
POINT = OperatingPoint(precision=0.95, thresholds=(0.5, 0.5, None), coverage=0.7, least_known=0.5)
PARROT = "coral/parrot.jpg"
DROP = """([kind, name, base64]) => {
  const bytes = Uint8Array.from(atob(base64), (one) => one.charCodeAt(0)), data = new DataTransfer();
  if (name) data.items.add(new File([bytes], name));
  else data.setData("text/uri-list", "https://example.org/x.jpg");
  const event = kind === "paste" ? new ClipboardEvent("paste", { clipboardData: data, bubbles: true })
    : new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true });
  document.querySelector("main").dispatchEvent(event);
}"""


def of_photographs() -> Files:
    """Build a release around a network for photographs that someone else trained."""
    model = (SHARED_DATA / "coral/mobilenet_v1_0.25_128_quant.tflite").read_bytes()
    labels = tuple((SHARED_DATA / "coral/imagenet_labels.txt").read_text().strip().splitlines())
    preprocessing = Preprocessing(id=PREPROCESSING_ID, height=128, width=128, normalization=Normalization())
    return pack_release(model, labels, preprocessing, {}, ())


@pytest.fixture(scope="module")
def releases() -> dict[str, Files]:
    """Releases by the channel that points to them."""
    found = {
        "stable": tiny_release(model=tiny_model(second_output="known"), operating_point=POINT),
        "beta": tiny_release(1),
        "altered": tiny_release(2, size=16),
        "zero": tiny_release(1, size=16),
    }
    return found | ({"photographs": of_photographs()} if SHARED_DATA.is_dir() else {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the board and its bucket."""
    return tmp_path_factory.mktemp("try")


@pytest.fixture(scope="module")
def board(folder: Path, releases: dict[str, Files]) -> Iterator[RunningBoard]:
    """A board over these releases."""
    with pytest.MonkeyPatch.context() as patch:
        fleet = CommandFleet(folder, patch)
        for channel, (document, files) in releases.items():
            named = {release_target(document.release, name): data for name, data in files.items()}
            point = functools.partial(
                point_channel,
                channel=channel,
                release=document.release,
                share_percent=100.0,
                at=utc_now(),
            )
            fleet.repository.publish(named, point, channel)
        variants = {"pi-zero": releases["zero"][0].release}
        rollout = RolloutDocument(
            channel="beta",
            id="r1",
            release=releases["stable"][0].release,
            threshold=1 << 50,
            variants=variants,
        )
        fleet.repository.point("beta", lambda now: Pointers(now.channel, rollout))
    with RunningBoard(board_settings(fleet, folder)) as running:
        yield running


def send(board: RunningBoard, data: bytes, query: str = "", **headers: str) -> tuple[int, Any]:
    """Send a picture as curl does; return status and answer."""
    headers = {"Accept": "application/json", "Content-Type": "image/jpeg"} | headers
    request = urllib.request.Request(f"{board.url}try{query}", data, headers)  # noqa: S310 - loopback
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - loopback
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as e:
        return e.code, json.loads(e.read())


def answers(board: RunningBoard, data: bytes, query: str = "") -> list[dict[str, Any]]:
    """Return what releases say of one picture."""
    status, answer = send(board, data, query)
    assert status == 200, answer
    [picture] = answer["pictures"]
    assert {picture["fault"], *(one["fault"] for one in picture["answers"])} == {""}
    found: list[dict[str, Any]] = picture["answers"]
    return found


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    """Write a release as a device has it in a slot."""
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def photograph(side: int = 48, **options: Any) -> bytes:
    """A JPEG whose left half is red and whose right half is blue."""
    image = Image.new("RGB", (side, side // 2), (255, 0, 0))
    image.paste((0, 0, 255), (side // 2, 0, side, side // 2))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=95, subsampling=0, **options)
    return out.getvalue()


def test_a_photograph_is_answered_by_a_real_network_as_on_a_device(board, releases, shared_data, tmp_path):
    """Bit for bit: the same code decodes, fits, computes and judges."""
    data = (shared_data / PARROT).read_bytes()
    device = classifier_from_release(write_files(tmp_path / "slot", releases["photographs"][1]))
    device.warm()
    expected = device.classify(decode_picture(data))
    [found] = answers(board, data, "?channel=photographs&top=0&show=input")
    assert found["label"] == expected.label == "macaw"
    assert list(found["top"].items()) == [(k, round(v, 6)) for k, v in expected.top(2000).items()]
    assert (found["confidence"], found["sure"], found["known"]) == (round(expected.confidence, 6), True, None)
    assert found["model_sha256"] == hashlib.sha256(releases["photographs"][1][MODEL_FILE]).hexdigest()
    seen = decode_picture(base64.b64decode(found["input_png"]))
    assert (seen == fit_pixels(decode_picture(data), 128, 128)).all()


def test_pictures_are_dropped_pasted_chosen_and_taken(board, folder, tab, shared_data):
    data = (shared_data / PARROT).read_bytes()
    tab.goto(f"{board.url}try?release=channel:photographs")
    given = ["drop", "parrot.jpg", base64.b64encode(data).decode()]
    for number, act in enumerate(
        (
            lambda: tab.evaluate(DROP, given),
            lambda: tab.evaluate(DROP, ["paste", *given[1:]]),
            lambda: tab.get_by_label("Choose pictures").set_input_files(shared_data / PARROT),
            lambda: tab.locator("[name=photo]").set_input_files(shared_data / PARROT),
        ),
        start=1,
    ):
        act()
        expect(tab.locator("article.trial:not(.is-waiting)")).to_have_count(number)
        card = tab.locator("article.trial").first
        expect(card.get_by_role("heading")).to_contain_text(re.compile(r"macaw\s+\d\d\.\d%"))
        expect(card.locator(".sent img")).to_have_attribute("src", re.compile("^blob:"))
        expect(card).to_contain_text("512 \N{MULTIPLICATION SIGN} 929")
    expect(tab.locator("#said")).to_contain_text("macaw")
    card.get_by_text("All 1,000 labels").click()
    expect(card.get_by_role("row")).to_have_count(200)
    assert card.locator(".pixels").evaluate("one => [one.naturalWidth, one.naturalHeight]") == [128, 128]
    tab.evaluate(DROP, ["drop", "", ""])
    expect(tab.locator("article.trial").first).to_contain_text("That was no file but a link or text")
    tab.get_by_role("button", name="Use the camera").click()
    expect(tab.locator("#webcam")).to_have_text(re.compile("No camera was found|not allowed"))
    kept = [one.read_bytes() for one in folder.joinpath("board").rglob("*") if one.is_file()]
    assert not any(data[200:264] in one for one in kept), "what was sent is kept nowhere"


def test_unknown_and_unsure_are_told_with_their_reasons(board, tab):
    def verdict(colour: tuple[int, int, int]) -> tuple[str, str]:
        [found] = answers(board, png(np.full((32, 32, 3), colour, np.uint8)))
        return found["verdict"], found["why"]

    assert verdict((255, 180, 120))[0] == "sure"
    stranger, why = verdict((30, 0, 0))
    assert stranger == "unknown"
    assert "resembles no class" in why
    assert "below 0.50" in why
    assert verdict((200, 200, 255)) == (
        "unsure",
        "never sure of this label: no score makes 95% of the sure answers right",
    )
    tab.goto(f"{board.url}try")
    tab.locator("[name=picture]").set_input_files(
        {"name": "dark.png", "mimeType": "image/png", "buffer": png(plain_picture("black"))}
    )
    expect(tab.locator("article .badge")).to_have_text("unknown")
    expect(tab.locator("article")).to_contain_text("counts as a stranger")


def test_another_release_stands_beside_and_the_last_picture_is_asked_again(board, tab, releases):
    beta, stable = releases["beta"][0], releases["stable"][0]
    tab.goto(f"{board.url}try")
    tab.locator("[name=picture]").set_input_files(
        {"name": "red.png", "mimeType": "image/png", "buffer": png(plain_picture("red"))}
    )
    expect(tab.locator(".answer")).to_have_count(1)
    tab.get_by_label("Beside it").select_option(beta.release)
    newest = tab.locator("article.trial").first
    expect(newest.locator(".answer")).to_have_count(2)
    expect(newest.locator(".agree")).to_have_text(re.compile(r"same label, not as sure\s+unknown / sure"))
    expect(newest.locator(".origin a")).to_have_text([stable.release[:12], beta.release[:12]])
    expect(newest.locator(".answer").nth(1).get_by_role("row").first).to_contain_text(re.compile("same|[+-]"))
    first, second = answers(
        board, png(plain_picture("red")), f"?beside={beta.release}&release={stable.release}"
    )
    assert (first["chosen"], second["chosen"]) == ("chosen by its id", "chosen by its id")
    assert first["release"] == stable.release
    assert first["model_sha256"] != second["model_sha256"]


def test_a_channel_a_rollout_its_variants_and_each_release_can_be_chosen(board, releases):
    page = board.json("try")
    chosen = {one["value"]: one["release"] for one in page["channels"]}
    stable, beta, zero = (releases[name][0].release for name in ("stable", "beta", "zero"))
    assert next(iter(chosen)) == "channel:stable", "the channel of [release] is first"
    wanted = {"channel:beta": beta, "rollout:beta": stable, "rollout:beta:pi-zero": zero}
    assert {name: chosen[name] for name in wanted} == wanted
    assert {one["value"] for one in page["releases"]} == {one.release for one, _ in releases.values()}
    for value, release in wanted.items():
        assert answers(board, png(plain_picture("green")), f"?release={value}")[0]["release"] == release
    for value in ("rollout:stable", "rollout:beta:other", "rollout:none:x", "channel:"):
        assert send(board, png(plain_picture("green")), f"?release={value}")[0] == 400


def test_the_form_works_without_a_script_and_names_are_text(board, chromium):
    name = "<img src=x onerror=alert(1)>\u202egnp.exe"
    context = chromium.new_context(java_script_enabled=False, viewport={"width": 390, "height": 800})
    page = context.new_page()
    page.goto(f"{board.url}try")
    page.locator("[name=picture]").set_input_files(
        [
            {"name": name, "mimeType": "image/png", "buffer": png(plain_picture("green"))},
            {"name": "letter.pdf", "mimeType": "application/pdf", "buffer": b"%PDF-1.7"},
        ]
    )
    page.get_by_role("button", name="Classify").click()
    expect(page.locator("article.trial")).to_have_count(2)
    expect(page.locator("article").first.get_by_role("heading")).to_contain_text("green")
    expect(page.locator("article").first).to_contain_text("<img src=x onerror=alert(1)>")
    assert "\u202e" not in page.content()
    expect(page.locator("article").nth(1)).to_contain_text("letter.pdf: not a complete picture in one of")
    page.get_by_role("button", name="Classify").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("No picture came with this request")
    context.close()


def test_pictures_are_read_as_by_a_device(board):
    """Upright by EXIF, the first frame, CMYK and 16 bits."""
    turned = photograph(exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0")
    status, answer = send(
        board, turned, "?show=input", **{"Content-Disposition": 'attachment; filename="a b.jpg"'}
    )
    [picture] = answer["pictures"]
    assert (status, picture["file"], picture["width"], picture["height"]) == (200, "a b.jpg", 24, 48)
    seen = decode_picture(base64.b64decode(picture["answers"][0]["input_png"]))
    assert (seen[2, 16] > 200).tolist() == [True, False, False], "red is above"
    frames, out = [Image.new("RGB", (40, 40), one) for one in ((0, 255, 0), (255, 0, 0))], io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    assert answers(board, out.getvalue())[0]["label"] == "green"
    for mode, kind in (("CMYK", "JPEG"), ("I;16", "PNG"), ("RGB", "WEBP"), ("1", "TIFF"), ("LA", "PNG")):
        out = io.BytesIO()
        Image.new(mode, (50, 30)).save(out, kind)
        assert answers(board, out.getvalue())[0]["label"] in {"red", "green", "blue"}


HOSTILE = {
    "bomb": (lambda: large(20_000), "400000000 pixels"),
    "many pixels": (lambda: large(9_000), "at most 50000000 are accepted"),
    "wide": (lambda: large(70_000, 1), "at most 65535 on a side"),
    "truncated": (lambda: photograph(400)[:900], "cannot be decoded as a picture"),
    "scans": (lambda: with_scans(3000), "in more than 100 scans"),
    "svg": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a complete picture in one of"),
    "heic": (lambda: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "not a complete picture in one of"),
    "empty": (lambda: b"", "no picture came"),
}


def large(width: int, height: int = 0) -> bytes:
    """A PNG of few bytes."""
    out = io.BytesIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        Image.new("1", (width, height or width)).save(out, "PNG")
    return out.getvalue()


def test_hostile_pictures_end_in_sentences_while_others_are_answered(board):
    green = png(plain_picture("green"))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        slow = pool.submit(send, board, with_scans(60, 2000))
        for name, (make, words) in HOSTILE.items():
            status, answer = send(board, make())
            assert (status, words in answer["error"]) == (400, True), (name, answer)
            assert answers(board, green)[0]["label"] == "green"
        assert slow.result()[0] == 200


def test_a_labeller_sends_a_picture_on_to_the_inbox(board, folder, tab):
    """What lies there is a frame as a device writes it."""
    file = {"name": "dark.png", "mimeType": "image/png", "buffer": png(plain_picture("black", 600, 1200))}
    tab.goto(f"{board.url}try")
    tab.get_by_label("Choose pictures").set_input_files(file)
    expect(tab.get_by_role("button", name="Send to the inbox")).to_be_disabled()
    expect(tab.locator("article")).to_contain_text("needs the role labeller")
    token, _ = Tokens(folder / "board").issue("ann", "labeller", 1)
    tab.goto(f"{board.url}sign-in?next=/try")
    tab.get_by_label("Token").fill(token)
    tab.get_by_role("button", name="Sign in").click()
    tab.get_by_label("Choose pictures").set_input_files(file)
    tab.get_by_role("button", name="Send to the inbox").click()
    expect(tab.get_by_role("link", name="In the inbox, to be labelled")).to_be_visible()
    url = (folder / "bucket").as_uri()
    store = FolderStore(StoreSettings(url, "", "", "when_required", conditional_writes=True))
    [name] = list_inbox(store).names
    frame = read_frame(store, name)
    assert (name.device, frame.record.why, frame.record.channel) == ("board", "sent", "stable")
    assert set(frame.record.top) == {"red", "green", "blue"}
    with Image.open(io.BytesIO(frame.picture)) as kept:
        assert kept.size == (640, 320)


def test_what_is_refused_says_why(board):
    green = png(plain_picture("green"))
    assert send(board, green, Origin="https://example.org")[0] == 403
    assert "points to no release; channels: altered" in send(board, green, "?channel=none")[1]["error"]
    assert "is not signed here" in send(board, green, "?release=../../etc")[1]["error"]
    assert "is not signed here" in send(board, green, "?beside=0123456789abcdef0123")[1]["error"]
    assert "give a number of labels" in send(board, green, "?top=-1")[1]["error"]
    assert "without a boundary" in send(board, green, **{"Content-Type": "multipart/form-data"})[1]["error"]
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    assert "breaks off" in send(board, b"--x\r\nContent-Disposition: form-data", **form)[1]["error"]
    status, answer = send(board, b"", **{"Content-Length": "500000000"})
    assert (status, "up to 210,000,000 bytes" in answer["error"]) == (400, True)


def test_an_altered_model_is_never_run(board, folder, releases):
    document, files = releases["altered"]
    green = png(plain_picture("green"))
    [stored] = folder.glob(f"bucket/targets/releases/{document.release}/*.{MODEL_FILE}")
    stored.write_bytes(files[MODEL_FILE][:-1] + b"\1")
    status, answer = send(board, green, "?channel=altered")
    assert (status, "not the signed content" in answer["error"]) == (503, True)
    stored.write_bytes(files[MODEL_FILE])
    assert answers(board, green, "?channel=altered")[0]["label"] == "green"
    [cached] = [
        one for one in folder.glob(f"board/releases/*/{MODEL_FILE}") if one.read_bytes() == files[MODEL_FILE]
    ]
    cached.write_bytes(b"TFL3 of somebody else")
    assert answers(board, green, "?channel=altered")[0]["label"] == "green"
    assert cached.read_bytes() == files[MODEL_FILE]


def test_without_a_release_the_page_says_what_to_do_and_follows_what_is_published(fleet, tab, tmp_path):
    with RunningBoard(board_settings(fleet, tmp_path)) as board:
        tab.goto(f"{board.url}try")
        expect(tab.locator(".empty")).to_contain_text("luigi --module luigi_tasks Deploy --pictures")
        assert tab.locator("input[type=file]").count() == 0
        status, answer = send(board, png(plain_picture("green")))
        assert (status, "points to no release" in answer["error"]) == (400, True)
        fleet.publish(0)
        expect(tab.locator("[name=release]")).to_have_value("channel:stable")
        second = fleet.publish(1)
        chosen = tab.locator("[name=release] option:checked")
        expect(chosen).to_have_text(f"stable: current release, {second.release[:12]}")
