"""What belongs together stands on one side of the split, whatever arrives and in whatever order."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import io
import itertools

import msgspec
import numpy as np
import pytest
from PIL import Image, ImageDraw

from edge_client.contract.errors import InputError, SettingsError
from luigi_tasks.dataset.alike import find_alike
from luigi_tasks.dataset.capture import find_capture
from luigi_tasks.dataset.fingerprints import encode, shrink
from luigi_tasks.dataset.groups import SAME_TIME_AT_MOST, count_groups, find_contradictions
from luigi_tasks.dataset.left_out import BRIDGING
from luigi_tasks.dataset.records import HOLDOUT, NAMED, SIMILAR, TAKEN, TRAIN, Inventory
from luigi_tasks.dataset.splits import choose_splits
from luigi_tasks.settings.sections import load_settings
from luigi_tasks.steps import take_snapshot
from luigi_tasks.workspace import open_workspace
from tests.fakes.datasets import dataset_settings

WIDTH, HEIGHT = 96, 72
LENIENT = {"max_left_out_percent": 50.0}


def scene(seed):
    """A picture that is like no other seed's."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def frame(seed, number=0, *, exif=None):
    """JPEG of a scene as a hand-held camera sees it, a little moved, re-lit and noisy in each frame."""
    rng = np.random.default_rng([seed, number])
    zoom = rng.uniform(0.94, 0.99)
    left, top = rng.uniform(0, 1 - zoom, 2) * (WIDTH, HEIGHT)
    box = (left, top, left + zoom * WIDTH, top + zoom * HEIGHT)
    pixels = np.asarray(scene(seed).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR, box=box), np.float32)
    lit = pixels * rng.uniform(0.93, 1.07) + rng.normal(0, 2, pixels.shape)
    file = io.BytesIO()
    image = Image.fromarray(lit.clip(0, 255).astype(np.uint8))
    image.save(file, "JPEG", quality=int(rng.integers(75, 93)), **({"exif": exif} if exif else {}))
    return file.getvalue()


def png(pixels):
    """Content of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class Dataset:
    """A folder of pictures whose snapshots are taken one after the other, as the nightly runs do."""

    def __init__(self, folder):
        self.folder = folder
        self.pictures = folder / "pictures"
        (folder / "store").mkdir(parents=True)

    def add(self, path, data):
        file = self.pictures / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)

    def remove(self, path):
        (self.pictures / path).unlink()

    def workspace(self, **rules):
        settings = load_settings()
        return open_workspace(
            dataclasses.replace(
                settings,
                dataset=dataset_settings(self.folder / "cache", str(self.pictures), **rules),
                model=dataclasses.replace(settings.model, input_size=32),
                store=dataclasses.replace(settings.store, url=f"file://{self.folder}/store"),
            )
        )

    def snapshot(self, **rules):
        return take_snapshot(self.workspace(**rules))


@pytest.fixture
def dataset(tmp_path):
    return Dataset(tmp_path / "d")


def by_path(snapshot):
    return {one.path: one for one in snapshot.pictures}


def sides(snapshot):
    return {one.path: one.split for one in snapshot.pictures}


def fill(dataset, scenes, frames=1, start=0):
    """Frames of many scenes, in two classes by turns."""
    for number in range(start, start + scenes):
        for one in range(frames):
            dataset.add(f"{'ab'[number % 2]}/s{number:03}-{one}.jpg", frame(number, one))


def scene_of(path):
    return path.split("/")[1].split("-")[0]


def sides_of_scenes(snapshot):
    found = collections.defaultdict(set)
    for path, side in sides(snapshot).items():
        found[scene_of(path)].add(side)
    return found


# --- near-duplicates -----------------------------------------------------------------------------


def test_frames_of_a_scene_are_one_group_and_stand_on_one_side(dataset):
    fill(dataset, scenes=24, frames=4)
    snapshot = dataset.snapshot()
    assert len(snapshot.pictures) == 96
    groups = {scene_of(one.path): one.group for one in snapshot.pictures}
    assert all(one.group == groups[scene_of(one.path)] for one in snapshot.pictures)
    assert len(set(groups.values())) == 24
    assert count_groups(snapshot.pictures) == {SIMILAR: 24}
    assert all(len(found) == 1 for found in sides_of_scenes(snapshot).values())
    assert snapshot.left_out == ()


@pytest.mark.parametrize("seed", range(3))
def test_whatever_arrives_nothing_known_changes_sides(dataset, seed):
    rng = np.random.default_rng(seed)
    todo = [(number, one) for number in range(16) for one in range(3)]
    rng.shuffle(todo)
    fill(dataset, scenes=6, start=50)
    known = sides(dataset.snapshot())
    for number, one in todo:
        dataset.add(f"{'ab'[number % 2]}/s{number:03}-{one}.jpg", frame(number, one))
        if rng.random() < 0.15:
            snapshot = dataset.snapshot()
            now = sides(snapshot)
            assert {path: now[path] for path in known} == known
            assert all(len(found) == 1 for found in sides_of_scenes(snapshot).values())
            assert (snapshot.to_train, snapshot.to_holdout) == (0, 0)
            known = now
    assert all(len(found) == 1 for found in sides_of_scenes(dataset.snapshot()).values())


def test_without_a_memory_pictures_stand_alone_where_they_always_did(dataset):
    fill(dataset, scenes=40)
    snapshot = dataset.snapshot()
    assert all(one.group == one.sha256 and not one.joined for one in snapshot.pictures)
    assert count_groups(snapshot.pictures) == {"": 40}
    assert snapshot.moved == {}


def test_a_moved_or_touched_picture_keeps_group_and_side(dataset):
    fill(dataset, scenes=12, frames=2)
    before = {one.sha256: (one.group, one.split) for one in dataset.snapshot().pictures}
    for path in sorted(dataset.pictures.glob("a/*-1.jpg")):
        path.rename(path.with_name(f"moved-{path.name}"))
    assert {one.sha256: (one.group, one.split) for one in dataset.snapshot().pictures} == before


def test_a_class_that_was_left_out_for_a_while_keeps_its_sides(dataset):
    fill(dataset, scenes=16, frames=2)
    for number in range(300, 303):
        dataset.add(f"c/s{number}-0.jpg", frame(number))
    before = sides(dataset.snapshot())
    dataset.add("a/new.jpg", frame(400))
    assert not any(
        path.startswith("c/") for path in sides(dataset.snapshot(min_images_per_class=4, **LENIENT))
    )
    dataset.add("a/newer.jpg", frame(401))
    after = sides(dataset.snapshot())
    assert {path: after[path] for path in before} == before


def test_one_plan_gives_one_snapshot_on_any_machine(dataset):
    fill(dataset, scenes=10, frames=2)
    dataset.snapshot()
    fill(dataset, scenes=10, frames=2, start=5)
    first = dataset.snapshot()
    assert dataset.snapshot() == first  # follows the recorded plan, whatever the newest inventory is


def test_a_hundred_pictures_of_one_scene_are_one_group(dataset):
    for number in range(100):
        dataset.add(f"a/{number}.jpg", frame(1, number))
    fill(dataset, scenes=8, start=10)
    counts = collections.Counter(one.group for one in dataset.snapshot().pictures if one.path.split("/")[0])
    assert counts.most_common(1)[0][1] >= 98


def test_new_frames_find_their_scene_when_its_first_picture_is_gone(dataset):
    fill(dataset, scenes=30, frames=4)
    first = [one.path for one in dataset.snapshot().pictures if not one.joined]
    assert len(first) == 30
    fill(dataset, scenes=30, frames=5)
    for path in first:
        dataset.remove(path)
    found = sides_of_scenes(dataset.snapshot())
    assert {len(some) for some in found.values()} == {1}


def on_white(seed, number=0):
    """A thing on a white board, whose outline is that of any other thing."""
    rng = np.random.default_rng([seed, 1])
    thing = Image.open(io.BytesIO(frame(seed, number))).resize((48, 44))
    thing = Image.blend(Image.new("RGB", thing.size, (60, 60, 60)), thing, 0.5)
    mask = Image.new("L", thing.size)
    ImageDraw.Draw(mask).ellipse((1, 1, 46, 42), fill=255)
    board = Image.new("RGB", (WIDTH, HEIGHT), (224, 224, 218))
    board.paste(thing, (22 + int(rng.integers(0, 4)), 12 + int(rng.integers(0, 4))), mask)
    file = io.BytesIO()
    board.save(file, "JPEG", quality=90)
    return file.getvalue()


def test_things_on_a_white_board_are_different_scenes(dataset):
    for seed in range(60):
        dataset.add(f"{'ab'[seed % 2]}/{seed}.jpg", on_white(seed))
    groups = collections.Counter(one.group for one in dataset.snapshot().pictures)
    assert len(groups) > 55
    dataset.add("a/again.jpg", on_white(4, 1))
    found = by_path(dataset.snapshot())
    assert found["a/again.jpg"].group == found["a/4.jpg"].group


def test_near_duplicates_can_be_told_apart_by_a_setting_and_keep_their_sides(dataset):
    fill(dataset, scenes=20, frames=3)
    before = by_path(dataset.snapshot())
    assert len({one.group_id for one in before.values()}) == 20
    after = by_path(dataset.snapshot(near_duplicates=False))
    assert len({one.group_id for one in after.values()}) == 60
    assert {path: one.split for path, one in after.items()} == {
        path: one.split for path, one in before.items()
    }


def test_near_duplicates_with_different_labels_are_found(dataset):
    fill(dataset, scenes=10)
    dataset.add("b/twin.jpg", frame(4, 9))
    [pair] = find_contradictions(dataset.snapshot())
    assert sorted(one.path for one in pair) == ["a/s004-0.jpg", "b/twin.jpg"]


def test_covered_lenses_are_one_scene_and_no_white_wall():
    noise = np.random.default_rng(1)
    dark = [noise.integers(0, 4, (64, 64, 3), np.uint8) for _ in range(3)]
    light = [noise.integers(240, 244, (64, 64, 3), np.uint8) for _ in range(3)]
    texts = encode(np.stack([shrink(one) for one in (*dark, *light)]))
    assert find_alike(texts, 0) == [(1, 0), (2, 0), (4, 3), (5, 3)]


def test_drawings_of_a_few_pixels_are_not_taken_for_one_scene(dataset):
    for number in range(20):
        for label, column in (("one", 3), ("two", 4)):
            drawing = np.zeros((8, 8), np.uint8)
            drawing[1:7, column] = 255 - number
            dataset.add(f"{label}/{number}.png", png(drawing))
    snapshot = dataset.snapshot()
    assert len({one.group_id for one in snapshot.pictures}) == 40
    dataset.add("two/new.png", png(np.full((8, 8), 9, np.uint8)))
    [shard] = dataset.workspace().plan.new
    assert [one.path for one in shard.pictures] == ["two/new.png"], "the others are not read again"


# --- time ----------------------------------------------------------------------------------------


def timed(second):
    return f"IMG_20240131_12{second // 60:02}{second % 60:02}.jpg"


def test_a_burst_is_one_camera_one_folder_and_short_gaps(dataset):
    for number, second in enumerate((0, 8, 16, 40)):
        dataset.add(f"a/{timed(second)}", frame(number))
        dataset.add(f"b/{timed(second)}", frame(100 + number))
    found = by_path(dataset.snapshot())
    assert found[f"a/{timed(0)}"].group == found[f"a/{timed(8)}"].group == found[f"a/{timed(16)}"].group
    assert len({one.group for one in found.values()}) == 4
    assert count_groups(found.values()) == {TAKEN: 2, "": 2}
    alone = dataset.snapshot(burst_s=0.0)
    assert len(alone.pictures) == 8


def test_a_picture_between_two_sides_is_left_out_until_one_of_them_is_gone(dataset):
    """Frames 15 s apart are no burst; one in the middle is 8 s from both."""
    fill(dataset, scenes=10, start=200)
    for number in range(20):
        dataset.add(f"a/{number}_{timed(30 * number)[4:]}", frame(number))
        dataset.add(f"a/{number}_{timed(30 * number + 15)[4:]}", frame(100 + number))
    before = dataset.snapshot()
    now = sides(before)
    pairs = [
        (path, other)
        for number in range(20)
        for path, other in [[f"a/{number}_{timed(30 * number + late)[4:]}" for late in (0, 15)]]
    ]
    number, (path, other) = next((n, pair) for n, pair in enumerate(pairs) if now[pair[0]] != now[pair[1]])
    bridge = f"a/bridge_{timed(30 * number + 8)[4:]}"
    dataset.add(bridge, frame(300))
    after = dataset.snapshot()
    assert sides(after) == now
    [left_out] = after.left_out
    assert (left_out.path, left_out.reason) == (bridge, BRIDGING)
    assert path in left_out.words
    assert other in left_out.words
    dataset.remove(path)
    assert by_path(dataset.snapshot())[bridge].group == by_path(after)[other].group


def test_a_clock_that_stands_still_joins_nothing(dataset):
    for number in range(SAME_TIME_AT_MOST + 1):
        dataset.add(f"a/{number}_20240131_120000.jpg", frame(number))
    fill(dataset, scenes=4, start=200)
    assert set(count_groups(dataset.snapshot().pictures)) == {""}


def test_a_date_that_a_program_wrote_into_all_pictures_joins_nothing(dataset):
    for number in range(SAME_TIME_AT_MOST + 2):
        written = exif_of("2024:01:31 12:00:00")
        dataset.add(f"{'abc'[number % 3]}/{number}.jpg", frame(number, exif=written))
    assert set(count_groups(dataset.snapshot().pictures)) == {""}


def exif_of(taken, model="camera", part="250"):
    exif = Image.Exif()
    exif[0x0110] = model
    details = exif.get_ifd(0x8769)
    details[0x9003], details[0x9291] = taken, part
    return exif.tobytes()


@pytest.mark.parametrize(
    ("name", "millisecond"),
    [
        ("IMG_20240131_120102.jpg", 62_000),
        ("PXL_20240131_120102345.jpg", 62_345),
        ("2024-01-31T12-01-02Z.png", 62_000),
        ("2024-01-31 12.01.02.jpg", 62_000),
        ("inbox-0123456789abcdef-20240131T120102-porch.jpg", 62_000),
        ("1706702462345.jpg", 62_345),
    ],
)
def test_times_in_names_are_understood(name, millisecond):
    noon = 1_706_702_400_000
    assert find_capture(b"", f"a/{name}")[0] - noon == millisecond


@pytest.mark.parametrize("name", ["1.jpg", "19700101_000000.jpg", "picture-00123.jpg", "20241331_120000.jpg"])
def test_other_digits_are_no_time(name):
    assert find_capture(b"", f"a/{name}") == (0, "")


def test_exif_tells_time_and_camera_and_broken_exif_nothing():
    taken, camera = find_capture(frame(1, exif=exif_of("2024:01:31 12:01:02")), "a/20200101_000000.jpg")
    assert (taken - 1_706_702_400_000, camera) == (62_250, "camera")
    assert find_capture(frame(1, exif=exif_of("1970:01:01 00:00:00")), "a/1.jpg") == (0, "camera")
    assert find_capture(frame(1, exif=exif_of("nonsense")), "a/1.jpg") == (0, "")
    assert find_capture(b"\xff\xd8\xff\xe1Exif\0\0broken", "a/1.jpg") == (0, "")
    assert find_capture(b"", "a/inbox-0123456789abcdef-20240131T120102-porch.jpg")[1] == "porch"


# --- names ---------------------------------------------------------------------------------------


def test_an_expression_names_groups_by_its_first_group_or_by_all_that_it_matches(dataset):
    for number in range(24):
        dataset.add(f"{'ab'[number % 2]}/day{number % 8}/{number}.jpg", frame(number))
    for pattern in (r"(day\d)/", r"day\d"):
        snapshot = dataset.snapshot(group=pattern)
        days = {one.path.split("/")[1]: one.group for one in snapshot.pictures}
        assert len(set(days.values())) == 8
        assert all(one.group == days[one.path.split("/")[1]] for one in snapshot.pictures)
        assert count_groups(snapshot.pictures) == {NAMED: 8}


def test_an_expression_that_names_nothing_is_told(dataset, caplog):
    fill(dataset, scenes=30)
    dataset.snapshot(group=r"cam(\d)/")
    assert "names none of the pictures; their paths are like 'a/s0" in caplog.text


def test_groups_that_are_named_later_hold_and_who_changes_sides_is_told(dataset, tmp_path):
    fill(dataset, scenes=40)
    before = sides(dataset.snapshot())
    table = tmp_path / "groups.csv"
    rows = [f"{path},{number // 5}" for number, path in enumerate(sorted(before))]
    table.write_text("\n".join(["path,group", *rows]))
    snapshot = dataset.snapshot(group=str(table))
    after = sides(snapshot)
    groups = collections.defaultdict(set)
    for number, path in enumerate(sorted(before)):
        groups[number // 5].add(after[path])
    assert all(len(found) == 1 for found in groups.values())
    moved = collections.Counter(after[path] for path in before if after[path] != before[path])
    assert moved
    assert sum(side == HOLDOUT for side in after.values()) <= 20, "any hold-out picture took all others along"
    assert (snapshot.to_train, snapshot.to_holdout) == (moved[TRAIN], moved[HOLDOUT])
    assert f"{moved[TRAIN]} pictures were hold-out before" in dataset.workspace(group=str(table)).describe(
        snapshot
    )
    table.write_text(table.read_text().replace(rows[0], rows[0].split(",")[0] + ",other"))
    assert dataset.snapshot(group=str(table)).digest != snapshot.digest, "the CSV's content was not looked at"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("picture,group\n1,2\n", "line 2: give the columns path and group"),
        ("path,group\na/1.jpg,x\na/1.jpg,y\n", "line 3: a/1.jpg is in two groups"),
    ],
)
def test_a_csv_that_cannot_be_used_is_a_fault_of_the_settings(dataset, tmp_path, content, message):
    fill(dataset, scenes=6)
    if content is not None:
        (tmp_path / "g.csv").write_text(content)
    with pytest.raises(SettingsError, match=message):
        dataset.snapshot(group=str(tmp_path / "g.csv"))


# --- classes -------------------------------------------------------------------------------------


def test_a_class_that_is_one_group_is_learned_from_and_named(dataset):
    fill(dataset, scenes=20)
    for number in range(6):
        dataset.add(f"c/{number}.jpg", frame(500, number))
    snapshot = dataset.snapshot()
    assert snapshot.thin_classes == ("c",)
    assert {one.split for one in snapshot.pictures if one.label == "c"} == {TRAIN}
    assert "nothing judges them: 'c'" in dataset.workspace().describe(snapshot)


def test_a_class_that_is_left_out_is_part_of_the_snapshot_until_its_folder_goes(dataset):
    fill(dataset, scenes=20)
    (dataset.pictures / "c").mkdir()
    before, listing = dataset.snapshot(), dataset.workspace().listing
    assert before.left_out_classes == ("c",)
    (dataset.pictures / "c").rmdir()
    after = dataset.snapshot()
    assert dataset.workspace().listing != listing, "nobody would look again"
    assert (after.left_out_classes, after.digest) == ((), before.digest)


def test_where_each_class_is_one_group_nothing_can_judge(dataset):
    for number in range(6):
        dataset.add(f"a/{number}.jpg", frame(500, number))
        dataset.add(f"b/{number}.jpg", frame(600, number))
    with pytest.raises(InputError, match=r"each class is one group of pictures .*; add pictures of other"):
        dataset.snapshot()


@pytest.mark.parametrize("seed", range(4))
def test_classes_of_few_large_groups_have_about_their_share_in_the_holdout(dataset, seed):
    rng = np.random.default_rng(seed)
    for label, number in itertools.product("ab", range(8)):
        for one in range(int(rng.integers(2, 5))):
            dataset.add(
                f"{label}/{seed}g{number}-{one}.jpg", frame(1000 * seed + 50 * ord(label) + number, one)
            )
    pictures = dataset.snapshot(group=r"(g\d)-").pictures
    for label in "ab":
        held = [one.split == HOLDOUT for one in pictures if one.label == label]
        assert 0 < sum(held) / len(held) < 0.45


@pytest.mark.parametrize("small", [1, 2, 5])
def test_a_class_that_is_nearly_one_group_is_learned_from_and_judged_by_the_rest(small):
    for seed in range(20):
        owner: dict[str, str] = {}
        for label, (number, size) in itertools.product("ab", enumerate([90, *[2] * small])):
            group = hashlib.sha256(f"{seed}/{label}/{number}".encode()).hexdigest()
            owner |= {f"{label}{number}-{one}": group for one in range(size)}
        splits = choose_splits({one: one[0] for one in owner}, 20.0, groups=owner)
        held = collections.Counter(one[0] for one, side in splits.items() if side == HOLDOUT)
        assert set(held) == {"a", "b"}
        assert max(held.values()) <= 2 * small


# --- earlier versions ----------------------------------------------------------------------------


def test_pictures_that_an_earlier_version_read_are_read_again_once(dataset):
    fill(dataset, scenes=20, frames=2)
    expected = dataset.snapshot()
    workspace = dataset.workspace()
    log, key = workspace.log, workspace.log.newest()
    old = [
        msgspec.structs.replace(one, fingerprint="", group="", split="", joined="")
        for one in log.load(key).pictures
    ]
    log.save("released", Inventory(pictures=tuple(old)))
    dataset.add("a/new.jpg", frame(900))
    plan = dataset.workspace().plan
    assert (plan.inventory, len(plan.gone), sum(len(one.pictures) for one in plan.new)) == (
        "released",
        40,
        41,
    )
    snapshot = dataset.snapshot()
    assert {one.path: one.group for one in snapshot.pictures if one.path != "a/new.jpg"} == {
        one.path: one.group for one in expected.pictures
    }
    assert snapshot.to_train + snapshot.to_holdout > 0, "bursts that were on both sides moved untold"
    assert dataset.workspace().plan.new == plan.new  # the plan is recorded
    dataset.add("a/newer.jpg", frame(901))
    assert [len(one.pictures) for one in dataset.workspace().plan.new] == [1]
