"""Labels files as they come with models: lines, numbered lines, CSV and JSON.

What is written, what is meant (`0 Cat` of Teachable Machine is `Cat`), and how many outputs the model has
decide together, so that a class that is named `7 up` or `2` keeps its name.
"""

from __future__ import annotations

import codecs
import json
import re
from typing import TYPE_CHECKING

from edge_client.contract.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Label of the additional first output of many ImageNet models.
BACKGROUND = "background"
_LINE_END = re.compile(r"\r\n|\r|\n")
# `0 cat`, `0: cat`, `0:cat`, `0,cat`, `0;cat`, `0<tab>cat`, `0 - cat`, `0) cat`
_NUMBERED = re.compile(r"(\d{1,6})(?:\s*[:,;)|]\s*|\s+-\s+|\s+)(\S.*)")
# `cat,0` and `cat<tab>0`
_NUMBER_LAST = re.compile(r"(\S.*?)\s*[,;\t]\s*(\d{1,6})")
_LONGEST_LABEL, _FEW_LABELS = 500, 20
# First line of a table with one column.
_HEADERS = {"label", "labels", "name", "names", "class", "classes", "class_name", "class_label"}
# Tables of other tools in which a JSON file holds its labels: Teachable Machine, Hugging Face.
_JSON_KEYS = ("labels", "id2label", "class_names", "classes", "names", "label_map")


def read_labels(content: bytes, outputs: int) -> tuple[str, ...]:
    """Return the label of each output.

    Args:
        content: Content of a labels file.
        outputs: Number of labels that the model needs; decides where a file may be read in several ways.
    Returns: The labels; not `outputs` of them where the file does not fit.
    Raises: InputError if it is not text, or JSON without labels.
    """
    labels = _written(content, outputs)
    has_background = bool(labels) and labels[0].casefold() == BACKGROUND
    if has_background and len(labels) == outputs + 1:
        return labels[1:]
    if labels and not has_background and len(labels) == outputs - 1:
        return (BACKGROUND, *labels)
    return labels


def fits_exactly(content: bytes, outputs: int) -> bool:
    """Whether a file has one label for each output, without adding or dropping one for the background."""
    return len(_written(content, outputs)) == outputs


def read_two_labels(content: bytes) -> tuple[str, ...]:
    """Return the labels of a model with one output: that of a low value, and that of a high one.

    A file with one label names the high one. Raises: InputError as `read_labels`.
    """
    labels = _written(content, 2)
    return (f"not {labels[0]}", labels[0]) if len(labels) == 1 else labels


def read_embedded_labels(content: bytes) -> tuple[str, ...]:
    """Return the labels of a file inside a model, which has one label a line and nothing else.

    Raises: InputError if it is not text.
    """
    lines = [line.strip() for line in _LINE_END.split(_decode(content))]
    return tuple(_named(_without_end(lines)))


def _written(content: bytes, outputs: int) -> tuple[str, ...]:
    """Return the labels of a file as they are meant."""
    text = _decode(content)
    if text.lstrip()[:1] in {"{", "["} and (found := _from_json(text)) is not None:
        return tuple(found)
    written = [line.strip() for line in _LINE_END.split(text)]
    if (numbered := _numbered([line for line in written if line], outputs)) is not None:
        return tuple(_named(numbered))
    lines = [_unquoted(line) for line in written]
    filled = [line for line in lines if line]
    if len(filled) == outputs + 1 and filled[0].casefold() in _HEADERS:
        return tuple(filled[1:])
    # A line without a label stands for an output without one; where the others fit by themselves, it is none.
    lines = _without_end(lines)
    exact = len(lines) == outputs and len(filled) != outputs
    return tuple(_named(lines) if exact else filled)


def _without_end(lines: list[str]) -> list[str]:
    """Return lines without the empty ones at the end."""
    end = next((place for place in range(len(lines), 0, -1) if lines[place - 1]), 0)
    return lines[:end]


def _named(lines: Sequence[str]) -> list[str]:
    return [line or f"unnamed {place}" for place, line in enumerate(lines)]


def _decode(content: bytes) -> str:
    # Notepad's "Unicode", or UTF-8 as some editors write it, with a byte order mark.
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    encoding = "utf-16" if wide else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as e:
        msg = f"not UTF-8 text: {e}; give a file with one label a line"
        raise InputError(msg) from e


def _numbered(lines: Sequence[str], outputs: int) -> list[str] | None:
    """Return the labels of lines with numbers, in the order of the numbers; None if not all have their own.

    A table's first line may be its header. The numbers are 0 to n - 1, or 1 to n, and without them the labels
    still differ; others are part of a name, as in `1 euro` and `2 euro`. Numbers with gaps name some of the
    outputs, where the lines do not fit otherwise.
    """
    if any(len(line) > _LONGEST_LABEL for line in lines):
        return None
    for rows in (lines, lines[1:]):
        for form, number, label in ((_NUMBERED, 1, 2), (_NUMBER_LAST, 2, 1)):
            found = [one for row in rows if (one := form.fullmatch(row))]
            labels = {int(one[number]): _unquoted(one[label].strip()) for one in found}
            if not rows or len(found) < len(rows) or len(labels) < len(rows):
                continue
            apart = len(set(labels.values())) >= _least_apart(len(rows))
            if sorted(labels) in _orders(len(rows)):
                return [labels[key] for key in sorted(labels)] if apart else None
            if len(rows) < outputs - 1 and max(labels) < outputs:
                return [labels.get(place, "") for place in range(outputs)]
    return None


def _least_apart(count: int) -> int:
    """Return how many of so many labels must differ; ImageNet has two cranes."""
    return count if count < _FEW_LABELS else count * 9 // 10


def _orders(count: int) -> tuple[list[int], list[int]]:
    return list(range(count)), list(range(1, count + 1))


def _unquoted(label: str) -> str:
    """Return a label without the quotes that CSV puts around one with a comma."""
    whole = len(label) > 1 and label[0] == label[-1] == '"' and '"' not in label[1:-1].replace('""', "")
    return label[1:-1].replace('""', '"').strip() if whole else label


def _from_json(text: str) -> list[str] | None:
    """Return the labels of a JSON file; None if it is no JSON.

    Raises: InputError if there are no labels in it.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    while isinstance(value, dict) and (key := next((one for one in _JSON_KEYS if one in value), None)):
        value = value[key]
    labels = _of_table(value) if isinstance(value, dict) else value
    if isinstance(labels, list) and labels and all(isinstance(one, (str, list, dict)) for one in labels):
        names = [_name(one) for one in labels]
        if all(names):
            return names
    msg = 'JSON without labels: give ["cat", "dog"], {"0": "cat", "1": "dog"} or {"cat": 0, "dog": 1}'
    raise InputError(msg)


def _of_table(table: Mapping[str, object]) -> list[object] | None:
    """Return the labels of a table of number to label, or of label to number."""
    if table and all(key.strip().isdecimal() for key in table):
        numbers: dict[int, object] = {int(key): value for key, value in table.items()}
    else:
        numbers = {
            value: key
            for key, value in table.items()
            if isinstance(value, int) and not isinstance(value, bool)
        }
    fits = len(numbers) == len(table) and sorted(numbers) in _orders(len(table))
    return [numbers[number] for number in sorted(numbers)] if fits else None


def _name(entry: object) -> str:
    """Return the label of an entry: itself, its name, or the last of `["n01440764", "tench"]`."""
    if isinstance(entry, dict):
        entry = next((entry[key] for key in ("name", "label", "display_name") if key in entry), "")
    if isinstance(entry, list):
        entry = entry[-1] if entry else ""
    return entry.strip() if isinstance(entry, str) else ""
