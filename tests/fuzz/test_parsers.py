"""Parsed, or the declared error; see `targets.py`. Seeds are fixed: every run tries the same examples."""

from __future__ import annotations

import json
import resource
from typing import TYPE_CHECKING, Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import DOCUMENTS, TARGETS

if TYPE_CHECKING:
    from collections.abc import Callable

QUICK = settings(
    max_examples=120,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
# Each costs a process with an interpreter.
PROCESSES = settings(QUICK, max_examples=6)

# Numbers and names at which parsers break.
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**31, 2**63, 2**64, -1, 10**400, 1e308, -0.0]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.sampled_from(["../../x", "/etc/passwd", "a\0b", "\ud800", "x" * 70_000, "9999-99-99T00:00:00Z"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def mutated(draw: Callable[..., Any], seeds: tuple[bytes, ...]) -> bytes:
    """A real example with a few bytes changed, cut out, doubled, or put in."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 6))):
        start = draw(st.integers(0, max(len(data) - 1, 0)))
        length = draw(st.integers(0, 64))
        match draw(st.sampled_from(["set", "cut", "double", "end"])):
            case "set":
                data[start : start + length] = draw(st.binary(max_size=64))
            case "cut":
                del data[start : start + length]
            case "double":
                data[start:start] = data[start : start + length]
            case "end":
                del data[start:]
    return bytes(data)


@st.composite
def changed_json(draw: Callable[..., Any], seeds: tuple[bytes, ...], prefix: int) -> bytes:
    """A real document in which a value, at any depth, is another, and perhaps one is gone."""
    seed: bytes = draw(st.sampled_from(seeds))
    document = json.loads(seed[prefix:])
    for _ in range(draw(st.integers(1, 3))):
        _change(draw, document)
    return seed[:prefix] + json.dumps(document).encode()


def _change(draw: Callable[..., Any], node: Any) -> None:
    while isinstance(node, dict | list) and node:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = draw(st.sampled_from(keys))
        if isinstance(node[key], dict | list) and node[key] and draw(st.booleans()):
            node = node[key]
            continue
        if draw(st.integers(0, 4)) == 0:
            del node[key]
        else:
            node[key] = draw(VALUES)
        return


def examples(name: str) -> st.SearchStrategy[bytes]:
    """Bytes for a target: of no kind, nearly right, and right but for a value."""
    seeds = TARGETS[name].seeds
    strategies = [st.binary(max_size=400), mutated(seeds)]
    prefix = {"announcement": 0, "release": 0, "document": 1, "metadata": 1, "signed": 1}.get(name)
    if prefix is not None:
        strategies.append(changed_json(seeds, prefix))
    return st.one_of(strategies)


@pytest.mark.runtime
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_real_example_is_taken(name):
    assert any(TARGETS[name].check(seed) for seed in TARGETS[name].seeds)


@pytest.mark.parametrize("name", sorted(TARGETS.keys() - {"model"}))
def test_parsed_or_the_declared_error(name):
    @QUICK
    @given(examples(name))
    def hold(data: bytes) -> None:
        TARGETS[name].check(data)

    hold()


@pytest.mark.runtime
def test_a_mutated_model_costs_the_child_at_most():
    @PROCESSES
    @given(mutated(TARGETS["model"].seeds).filter(lambda data: data not in TARGETS["model"].seeds))
    def hold(data: bytes) -> None:
        # The mark stays: without it nothing reaches the runtime.
        TARGETS["model"].check(data[:4] + b"TFL3" + data[8:])

    hold()


@pytest.mark.parametrize("kind", DOCUMENTS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    "data", [b"", b"[]", b"null", b"{}", b"[" * 100_000, b'{"a":' * 50_000, b"\xff", b"1e999"]
)
def test_malformed_json_raises_input_error(kind, data):
    TARGETS["document"].check(bytes([DOCUMENTS.index(kind)]) + data)


def test_unpacking_takes_no_more_memory_than_both_models():
    """Frames that claim windows and contents of gigabytes."""
    bombs = [
        zstandard.ZstdCompressor(level=1).compress(bytes(100_000_000)),
        *(_with_window(log) for log in (20, 24, 27, 30)),
        b"\x28\xb5\x2f\xfd\xe0" + b"\xff" * 8 + bytes(64),
    ]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for bomb in bombs:
        for choice in range(8):
            TARGETS["patch"].check(bytes([choice]) + bomb)
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kb < 64 * 1024


def _with_window(log: int) -> bytes:
    # Frame_Header_Descriptor 0 and Window_Descriptor, then an RLE block without end (RFC 8878, 3.1.1).
    return b"\x28\xb5\x2f\xfd\x00" + bytes([(log - 10) << 3]) + (b"\xfa\xff\x0f" + b"x") * 1000
