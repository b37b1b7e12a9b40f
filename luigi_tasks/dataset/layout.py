"""Layout of a dataset's folders: where in a path the class stands, and the split that folders give.

A dataset has one folder a class, at any depth below folders that hold nothing else (`dataset/roses/1.jpg`).
Folders `train`, `valid`, `test` and their kin are no classes: above the class folders or right below them,
they give the split. What could be meant in two ways is refused.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import unicodedata
from typing import TYPE_CHECKING

from edge_client.contract.errors import InputError
from luigi_tasks.dataset.records import HOLDOUT, TRAIN

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

NAMED_AT_MOST = 10
# Unicode categories of characters that break a line (labels.txt) or cannot be written.
NOT_IN_LABELS = frozenset({"Cc", "Cs", "Zl", "Zp"})

VALID, TEST = "valid", "test"
_ONE_FOLDER_A_CLASS = "a classifier needs one folder of pictures a class"
_USE = {TRAIN: "is learned from", HOLDOUT: "is the hold-out"}
_SPLIT_NAME = re.compile(
    r"(?:(?P<stem>.+)[-_ .])?(?:(?P<train>train|training)|(?P<valid>val|valid|validation|dev)"
    r"|(?P<test>test|testing|hold-?out|eval|evaluation))"
    r"(?:[-_ ]?(?:set|split|data|dataset|images|imgs|\d{1,4}))?",
    re.IGNORECASE,
)
# Folders of pictures without a class, next to those of a split.
_UNLABELLED = frozenset({"unlabeled", "unlabelled", "unsup", "pred", "prediction", "predictions"})
# Folders of data sets for object detection and segmentation: what they hold are no classes.
_NO_CLASSES = (
    "image images img imgs jpegimages label labels annotation annotations mask masks imagesets bboxes "
    "segmentationclass segmentationobject"
)
# Folders that hold classes, next to others that are none (a project's `docs`, Frigate's `train`).
_HOLDS_CLASSES = frozenset("data dataset datasets images img imgs pictures photos".split())  # noqa: SIM905
# Forms of the same pictures, each with all classes in it.
_FORM = re.compile(
    r"(?:(?:colou?r|gr[ae]y(?:scale)?|rgb|segmented|masked|cropped|original|raw|resized|augmented|processed"
    r"|preprocessed)(?:[-_ ]?(?:images|imgs|data|dataset|set))?)",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Meaning of the folders of a path.

    Attributes:
        above: Folders above the class folders that hold nothing else, ending in /; empty: none.
        class_at: Position of the class folder in a path.
        split_at: Position of the folder that gives the split; -1: none does.
        sides: Split by the folder that gives it.
        between: By that folder, the folders between it and the class folders, ending in /; empty: none.
    """

    above: str = ""
    class_at: int = 0
    split_at: int = -1
    sides: Mapping[str, str] = dataclasses.field(default_factory=dict)
    between: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def class_folder(self, path: str) -> str:
        """Return the folder that is the class of a picture; empty: it lies in none."""
        parts = path.split("/", self.class_at + 1)
        return parts[self.class_at] if len(parts) > self.class_at + 1 and path.startswith(self.above) else ""

    def given_split(self, path: str) -> str:
        """Return the split that a picture's folders give; empty: none."""
        if self.split_at < 0 or not path.startswith(self.above):
            return ""
        parts = path.split("/", self.split_at + 1)
        return self.sides.get(parts[self.split_at], "") if len(parts) > self.split_at + 1 else ""

    def folder_of(self, class_folder: str) -> str:
        """Return the folder for new pictures of a class; where folders give the split, one to learn from."""
        train = next((name for name, side in self.sides.items() if side == TRAIN), "")
        if self.split_at < 0:
            return f"{self.above}{class_folder}"
        return (
            f"{self.above}{train}/{self.between.get(train, '')}{class_folder}"
            if self.split_at < self.class_at
            else (f"{self.above}{class_folder}/{train}")
        )

    def in_words(self) -> str:
        """Describe what is not evident; empty: one folder a class at the top."""
        where = f"the classes are the folders in {self.above}" if self.above else ""
        if self.split_at < 0:
            return where
        taken = ", ".join(f"{name} {_USE[side]}" for name, side in sorted(self.sides.items()))
        return f"{where and where + '; '}the split is that of the folders: {taken}"


def find_layout(folders: Iterable[str], url: str) -> Layout:
    """Find the layout of pictures that lie in these folders.

    Args:
        folders: With / between, relative to the dataset; the same one any number of times.
        url: The dataset, for messages.
    Raises: InputError if the folders can be understood in two ways, or are no classes.
    """
    parts = [tuple(one.split("/")) for one in set(folders) if one]
    depth = _wrapping_depth(parts)
    above = "".join(f"{one}/" for one in parts[0][:depth]) if parts else ""
    inside = [one[depth:] for one in parts if len(one) > depth]
    layout = _find_split(inside, depth, above, url)
    if layout is None:
        _refuse_whole_sets(inside, above, url)
        layout = Layout(above, depth)
    names = {one[layout.class_at - depth] for one in inside if len(one) > layout.class_at - depth}
    if names and {one.casefold() for one in names} <= {*_NO_CLASSES.split()}:
        msg = (
            f"{url}: {_listed(names)} {'is no class' if len(names) == 1 else 'are no classes'}, but the "
            f"folders of a data set for object detection or segmentation; {_ONE_FOLDER_A_CLASS}"
        )
        raise InputError(msg)
    return layout


def _wrapping_depth(folders: Sequence[tuple[str, ...]]) -> int:
    """Return how many folders stand above the classes, one in the other, each alone in its place."""
    depth = 0
    while len({one[depth] for one in folders if len(one) > depth}) == 1:
        below = {one[depth + 1] for one in folders if len(one) > depth + 1}
        has_pictures = any(len(one) == depth + 1 for one in folders)
        if len(below) < (2 if has_pictures else 1):
            break
        depth += 1
    return depth


def _find_split(inside: Sequence[tuple[str, ...]], depth: int, above: str, url: str) -> Layout | None:
    """Return the layout whose folders give the split, above the classes or right below them."""
    tops = {one[0] for one in inside}
    kinds = _split_kinds(tops)
    if len(set(kinds.values())) > 1 or _is_split_of_one(inside, tops, kinds):
        _refuse_unclear_split(inside, tops, kinds, above, url)
        if len(kinds) == len(tops):
            sides = _sides(kinds, above, url)
            between = _find_between(inside, tops)
            class_at = depth + 1 + between[min(tops)].count("/")
            _refuse_no_classes(inside, class_at - depth, sides, above, url)
            return Layout(above, class_at, depth, sides, between)
    seconds = {one[1] if len(one) > 1 else "" for one in inside}
    kinds = _split_kinds(seconds)
    if len(tops) > 1 and len(kinds) == len(seconds) and len({*kinds.values()}) > 1 and not _split_kinds(tops):
        return Layout(above, depth, depth + 1, _sides(kinds, above, url))
    return None


def _split_kinds(names: set[str]) -> dict[str, str]:
    """Return the kinds of folders that are named like a split; `pets_train` only with another `pets_...`."""
    stems: dict[str, dict[str, str]] = {}
    for name in names:
        if found := _SPLIT_NAME.fullmatch(name.strip()):
            stems.setdefault((found["stem"] or "").casefold(), {})[name] = _split_kind(name)
    kinds = {}
    for stem, some in stems.items():
        if not stem or len(set(some.values())) > 1:
            kinds.update(some)
    return kinds


def _is_split_of_one(inside: Sequence[tuple[str, ...]], tops: set[str], kinds: Mapping[str, str]) -> bool:
    """Whether a folder `train` holds classes, and those next to it the same ones, or none at all."""
    if set(kinds.values()) != {TRAIN} or len(tops) == len(kinds):
        return False
    classes = {one[1] if len(one) > 1 else "" for one in inside if one[0] in kinds}
    others = {one[1] for one in inside if one[0] not in kinds and len(one) > 1}
    is_unlabelled = any(one.casefold() in _UNLABELLED for one in tops - kinds.keys())
    return "" not in classes and len(classes) > 1 and (is_unlabelled or bool(classes & others))


def _find_between(inside: Sequence[tuple[str, ...]], tops: set[str]) -> dict[str, str]:
    """Return the folders between each of a split and its classes; archives have `train/train/roses`."""
    below = {name: [one[1:] for one in inside if one[0] == name] for name in tops}
    depth = min(_wrapping_depth(some) for some in below.values())
    return {name: "".join(f"{one}/" for one in some[0][:depth]) for name, some in below.items()}


def _refuse_no_classes(
    inside: Sequence[tuple[str, ...]], class_at: int, sides: Mapping[str, str], above: str, url: str
) -> None:
    """Refuse a split below a split, and pictures without a class in some of its folders (`val/images`)."""
    classes: dict[str, set[str]] = {name: set() for name in sides}
    for one in inside:
        classes[one[0]].update(one[class_at : class_at + 1])
    everywhere = set.intersection(*classes.values())
    no_classes = {one for one in set().union(*classes.values()) if one.casefold() in _NO_CLASSES.split()}
    names = {*_split_kinds(set().union(*classes.values()))} | (no_classes - everywhere)
    found = {"/".join(one[: class_at + 1]) for one in inside if names & {*one[class_at : class_at + 1]}}
    if found:
        msg = (
            f"{url}: {_listed(f'{above}{one}' for one in found)} {'is' if len(found) == 1 else 'are'} no "
            f"class; {_ONE_FOLDER_A_CLASS} in each of {_listed(f'{above}{one}' for one in sides)}"
        )
        raise InputError(msg)


def _refuse_unclear_split(
    inside: Sequence[tuple[str, ...]], tops: set[str], kinds: Mapping[str, str], above: str, url: str
) -> None:
    """Refuse folders of a split next to others, or with pictures that lie in no class folder below."""
    looks, lies = ("looks", "lies") if len(kinds) == 1 else ("look", "lie")
    where = f"{url}: {_listed(f'{above}{one}' for one in kinds)} {looks} like a split"
    if others := tops - kinds.keys():
        msg = (
            f"{where}, but {lies} next to {_listed(others)}; move what is no part of the split elsewhere, or "
            "rename them if they are classes"
        )
        raise InputError(msg)
    if direct := {one[0] for one in inside if len(one) == 1}:
        msg = (
            f"{where}, but pictures lie directly in {_listed(direct)}; {_ONE_FOLDER_A_CLASS} in each of them "
            "(or other names, if these are the classes)"
        )
        raise InputError(msg)


def _refuse_whole_sets(inside: Sequence[tuple[str, ...]], above: str, url: str) -> None:
    """Refuse folders that hold all classes, where classes were expected: copies, forms, the data itself."""
    below: dict[str, set[str]] = {one[0]: set() for one in inside}
    for one in inside:
        below[one[0]].update(one[1:2])
    if len(below) < 2:
        return
    names = {top: names for top, names in below.items() if (top,) not in inside}
    whole, why = {top: "" for top in names if _FORM.fullmatch(top)}, "hold the same folders"
    if len(whole) < len(below) or len(set.intersection(*names.values())) < 2:
        kinds = {top: _kind_of_set(top, names[top], inside, below.keys() - {top}) for top in names}
        whole = {top: kind for top, kind in kinds.items() if kind}
        why = next(iter(whole.values()), "")
    if whole:
        place = shlex.quote(f"{url.rstrip('/')}/{above}{min(whole)}")
        others = "" if len(whole) == len(below) else f", next to {_listed(below.keys() - whole.keys())}"
        msg = (
            f"{url}: {_listed(f'{above}{one}' for one in whole)} {why} "
            f"({_listed(below[min(whole)])}){others}; give the folder that holds the classes (--pictures "
            f"{place}), or rename or remove what is no class"
        )
        raise InputError(msg)


def _kind_of_set(
    top: str, names: set[str], inside: Sequence[tuple[str, ...]], others: AbstractSet[str]
) -> str:
    """Return what the folders in one folder say it holds, if that is a whole data set."""
    if len(others) > 1 and names >= others:
        return "holds the other folders once more"
    kinds = _split_kinds(names)
    classes = {one[2] for one in inside if one[0] == top and len(one) > 2 and kinds.get(one[1]) == TRAIN}
    if len(kinds) == len(names) and len({*kinds.values()}) > 1 and len(classes) > 1:
        return "holds a split"
    folders = {one for one in inside if one[0] == top}
    return "holds folders" if top.casefold() in _HOLDS_CLASSES and len(folders) > 1 else ""


def _sides(kinds: Mapping[str, str], above: str, url: str) -> dict[str, str]:
    """Return the split by folder: `valid` is the hold-out, or learned from where there is a `test`."""
    there = set(kinds.values())
    if TRAIN not in there:
        names = _listed(f"{above}{one}" for one in kinds)
        msg = f"{url}: {names} look like a split without training pictures; add a folder train"
        raise InputError(msg)
    use = {TRAIN: TRAIN, VALID: TRAIN if TEST in there else HOLDOUT, TEST: HOLDOUT}
    # Training first: new pictures go to the first folder.
    return {name: use[kinds[name]] for name in sorted(kinds, key=lambda one: (kinds[one] != TRAIN, one))}


def _split_kind(name: str) -> str:
    """Return train, valid or test for a folder that is named so; else an empty text."""
    found = _SPLIT_NAME.fullmatch(name.strip())
    return next((kind for kind in (TRAIN, VALID, TEST) if found and found[kind]), "")


def name_folders(folders: Iterable[str]) -> dict[str, str]:
    """Map each class folder to its label (Unicode NFC, no outer blanks).

    Raises: InputError if two folders would be the same class, or a label is not one line of text.
    """
    labels = {folder: unicodedata.normalize("NFC", folder).strip() for folder in sorted(folders)}
    seen: dict[str, str] = {}
    for folder, label in labels.items():
        if not label or any(unicodedata.category(one) in NOT_IN_LABELS for one in label):
            msg = f"class folder {folder!r}: rename it; a label is one line of visible text"
            raise InputError(msg)
        twin = seen.setdefault(label.casefold(), folder)
        if twin != folder:
            msg = (
                f"class folders {twin!r} and {folder!r} differ only in case, blanks or Unicode form; merge "
                "them"
            )
            raise InputError(msg)
    return labels


def _listed(names: Iterable[str]) -> str:
    found = sorted(names)
    return ", ".join(repr(one) for one in found[:NAMED_AT_MOST]) + (
        f" and {len(found) - NAMED_AT_MOST} more" if len(found) > NAMED_AT_MOST else ""
    )
