"""Table of injected faults: tests count what they inject here, and `scripts/faults` prints one table of all.

A pytest plugin, which tests/conftest.py loads. A test that asks for the fixture `faults` is a fault test:
it gets the mark `faults`, and `scripts/faults` runs it. To add rows:

    def test_a_bad_start_costs_nothing(tmp_path, faults):
        for bit in faults.sample(range(8 * size), by_default=20):   # all of them with --every-fault
            with faults.injected(Kind.BIT_FLIPS, "slots.json", "one bit flipped"):
                ...   # inject it, start the device, assert that it serves

The block counts one fault, as survived if it ends and as failed if it raises, and lets the exception go on.
One table row is (kind, scenario, fault); keep the two short, and the same for all tries of one sort.
`place` says where in the program the fault hit, for the second table of docs/faults.md. `faults.record`
counts without a block. A fault test that fails outside of any block is counted too, under its own name. By
default a test takes a sample that costs about a second.

A kind has a heading, an outcome that its rows promise, and a paragraph for docs/faults.md: what is
injected, and what "survived" means there. Add a kind below if none fits. All rows travel with the test's
report, so that parallel processes (pytest-xdist), also one that crashes, lose nothing but the rows of the
test that ran.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import enum
import random
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

T = TypeVar("T")

_PROPERTY = "fault"
_SEED = 4
_MARK = "faults"


class Outcome(enum.Enum):
    """Promise of a row; the value is the heading of its column."""

    SERVED = "served"
    NOT_SIGNED = "no forged candidate signed"


_OF_FAILURES = {
    Outcome.SERVED: "without a serving device",
    Outcome.NOT_SIGNED: "forged and signed",
}


@dataclasses.dataclass(frozen=True)
class KindText:
    """Description of a kind of faults.

    Attributes:
        heading: Heading in docs/faults.md, and first column of the printed table.
        outcome: Promise of each row.
        about: Paragraph: what is injected, and what counts as survived.
    """

    heading: str
    outcome: Outcome
    about: str


class Kind(enum.Enum):
    """Kinds of faults, in the order of the table."""

    POWER = KindText(
        "Power, kills, network",
        Outcome.SERVED,
        "A device runs until the named call and ends there. The state of its disk depends on the fault: a\n"
        "killed process loses nothing; a power cut loses what was not synced, which is all that POSIX\n"
        "allows to be lost: bytes without fsync of the file, names without fsync of its folder. Then a new\n"
        "device starts on that disk. It must serve a complete, verified release (if one was ever\n"
        "installed), finish the interrupted update, and leave no leftovers. `docs/update.md` has the states\n"
        "of an update; each scenario begins in one of them, and the calls at the end of this page run\n"
        "through those that follow.",
    )
    BAD_STARTS = KindText(
        "Bad starts",
        Outcome.SERVED,
        "A start that fails for a reason of this machine (runtime, NumPy, memory, disk, another\n"
        "preprocessing) or finds its state damaged. Survived: once the cause is gone, the device serves a\n"
        "verified release without any network.",
    )
    BIT_FLIPS = KindText(
        "Bit flips",
        Outcome.SERVED,
        "One bit of one file of a slot or of the state is flipped while the device is off. Survived: a\n"
        "verified release serves, never an answer of altered files, and the device follows its channel.",
    )
    PICTURES = KindText(
        "Pictures and sources",
        Outcome.SERVED,
        "Pictures that are as large, slow or odd as their format allows, in a memory group of a small Pi;\n"
        "sources that hang. Survived: the device answers the pictures before and after, and the release\n"
        "keeps its slot.",
    )
    REFUSALS = KindText(
        "Refusals",
        Outcome.SERVED,
        "A passing fault (killed, timed out, out of memory, disk full) while a release is tried or on\n"
        "probation. Survived: the old release serves meanwhile, and the new one afterwards.",
    )
    RESULTS = KindText(
        "Results",
        Outcome.SERVED,
        "Broker, log file or disk fail while results are due, or the daemon is stopped with results that\n"
        "wait. Survived: the device serves, and each result is out, kept, or counted as lost in the status.",
    )
    STATE = KindText(
        "State folder, clock, bundles",
        Outcome.SERVED,
        "Files of the state that root made, links in their place, a lock file that is removed, a clock that\n"
        "jumps, hostile bundles. Survived: the device serves and follows its channel, nothing outside of\n"
        "its folder is touched, and no frame kept for labelling is deleted.",
    )
    BUCKETS = KindText(
        "Buckets that went back",
        Outcome.SERVED,
        "Somebody puts back what the bucket had before (all of it, or one object), or removes metadata,\n"
        "while two machines with memories of their own publish. Survived: once each of them has run again,\n"
        "a device follows both channels to what was published last.",
    )
    EVIDENCE = KindText(
        "Evidence",
        Outcome.NOT_SIGNED,
        "Somebody writes the bucket between two runs of the pipeline: each record of the chain from\n"
        "snapshot to candidate forged, dropped, swapped, or replayed from an older run. Survived: the next\n"
        "`Deploy` signs no candidate that this pipeline did not make and measure.",
    )


class Row(NamedTuple):
    """Faults of one sort that one test injected."""

    kind: str
    scenario: str
    fault: str
    place: str
    injected: int
    survived: int


class Faults:
    """Counts the faults that tests inject, and whether each was survived.

    Attributes:
        every: Whether all are wanted, however long it takes.
    """

    def __init__(self, *, every: bool) -> None:
        self.every = every
        self._pending: list[Row] = []

    @contextlib.contextmanager
    def injected(self, kind: Kind, scenario: str, fault: str, place: str = "") -> Iterator[None]:
        """Count one fault: survived if the block ends, failed if it raises."""
        try:
            yield
        except BaseException:
            self.record(scenario, fault, place, kind=kind, survived=False)
            raise
        self.record(scenario, fault, place, kind=kind)

    def record(
        self,
        scenario: str,
        fault: str,
        place: str = "",
        times: int = 1,
        *,
        kind: Kind = Kind.POWER,
        survived: bool = True,
    ) -> None:
        """Count faults of one sort, all survived or all failed."""
        self._pending.append(Row(kind.name, scenario, fault, place, times, times if survived else 0))

    def sample(self, cases: Sequence[T], by_default: int) -> list[T]:
        """Return all cases with --every-fault, else a fixed random choice of them, in their order."""
        if self.every or by_default >= len(cases):
            return list(cases)
        chosen = random.Random(_SEED).sample(range(len(cases)), by_default)
        return [cases[index] for index in sorted(chosen)]

    def take(self) -> list[Row]:
        """Return what was counted since the last call."""
        taken, self._pending = self._pending, []
        return taken


class FaultTable:
    """Rows of all tests of a run, merged.

    Attributes:
        every: Whether every fault was wanted, or a sample.
        failed_tests: Fault tests that failed outside of any counted fault.
    """

    def __init__(self, *, every: bool) -> None:
        self.every = every
        self._injected: collections.Counter[tuple[str, str, str]] = collections.Counter()
        self._survived: collections.Counter[tuple[str, str, str]] = collections.Counter()
        self._places: collections.Counter[str] = collections.Counter()
        self.failed_tests: list[str] = []

    def add(self, rows: Iterable[Row]) -> None:
        """Merge rows."""
        for row in rows:
            key = (row.kind, row.scenario, row.fault)
            self._injected[key] += row.injected
            self._survived[key] += row.survived
            if row.place:
                self._places[row.place] += row.injected

    @property
    def failed(self) -> bool:
        """Whether a fault was not survived."""
        return self._injected != self._survived

    def totals(self) -> list[str]:
        """Return one line for each outcome that matters."""
        extent = "" if self.every else ", a sample of all"
        lines = [f"faults injected: {self._injected.total()}{extent}"]
        for outcome, words in _OF_FAILURES.items():
            keys = [key for key in self._injected if Kind[key[0]].value.outcome is outcome]
            injected = sum(self._injected[key] for key in keys)
            lost = injected - sum(self._survived[key] for key in keys)
            lines.append(f"{words}: {lost} (of {injected})")
        if self.failed_tests:
            lines.append(f"fault tests that failed elsewhere: {len(self.failed_tests)}")
            lines += [f"  {name}" for name in self.failed_tests]
        return lines

    def text(self) -> str:
        """Return one table for a terminal."""
        head = ("kind", "scenario", "fault", "injected", *(one.value for one in Outcome))
        lines = [head, *(self._cells(kind, key) for kind in Kind for key in self._keys(kind))]
        widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
        justified = [
            "  ".join(
                cell.rjust(width) if column > 2 else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        rule = "  ".join("-" * width for width in widths)
        return "\n".join([justified[0], rule, *justified[1:], rule, *self.totals(), ""])

    def markdown(self) -> str:
        """Return the page docs/faults.md."""
        parts = [_ABOUT, *(f"- {line}" if not line.startswith(" ") else line for line in self.totals()), ""]
        for kind in Kind:
            if keys := self._keys(kind):
                injected, survived = (
                    sum(count[key] for key in keys) for count in (self._injected, self._survived)
                )
                parts += [
                    f"## {kind.value.heading}\n",
                    f"{kind.value.about}\n",
                    f"| scenario | fault | injected | {kind.value.outcome.value} |",
                    "| --- | --- | ---: | ---: |",
                    *(
                        f"| {key[1]} | {key[2]} | {self._injected[key]} | {self._survived[key]} |"
                        for key in keys
                    ),
                    f"| all | | {injected} | {survived} |",
                    "",
                ]
        if self._places:
            parts += [
                "## Calls before which a fault was injected\n",
                "| call | times |",
                "| --- | ---: |",
                *(f"| `{place}` | {times} |" for place, times in sorted(self._places.items())),
                "",
            ]
        return "\n".join(parts)

    def _keys(self, kind: Kind) -> list[tuple[str, str, str]]:
        return sorted(key for key in self._injected if key[0] == kind.name)

    def _cells(self, kind: Kind, key: tuple[str, str, str]) -> tuple[str, ...]:
        counts = (str(self._survived[key]) if kind.value.outcome is one else "-" for one in Outcome)
        return (kind.value.heading, key[1], key[2], str(self._injected[key]), *counts)


_ABOUT = """\
# Injected faults

Written by `scripts/faults --table docs/faults.md`; every run of the tests takes a sample. A fault counts as
survived only where all that its test asserts holds.
"""

_FAULTS = pytest.StashKey[Faults]()
_TABLE = pytest.StashKey[FaultTable]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-fault", action="store_true", help="inject every fault, not a sample")
    parser.addoption("--fault-table", help="write the table of injected faults to this file, as Markdown")
    parser.addoption("--print-faults", action="store_true", help="print the table of injected faults")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{_MARK}: injects faults and counts them; set where `faults` is used")
    config.stash[_FAULTS] = Faults(every=config.getoption("--every-fault"))
    config.stash[_TABLE] = FaultTable(every=config.getoption("--every-fault"))


@pytest.fixture(scope="session")
def faults(request: pytest.FixtureRequest) -> Faults:
    """Count of injected faults."""
    return request.config.stash[_FAULTS]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every fault test, before `-m` selects."""
    for item in items:
        if _MARK in getattr(item, "fixturenames", ()):
            item.add_marker(_MARK)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Attach what the test counted to its last report, which parallel processes send on."""
    if call.when == "teardown":
        item.user_properties.extend((_PROPERTY, list(row)) for row in item.config.stash[_FAULTS].take())


class _Reports:
    """Collects the reports of one run; a class, since the hook is not told the run's configuration."""

    def __init__(self, table: FaultTable) -> None:
        self._table = table
        self._failed: dict[str, bool] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        failed = self._failed[report.nodeid] = self._failed.get(report.nodeid, False) or report.failed
        rows = [msgspec.convert(value, Row) for name, value in report.user_properties if name == _PROPERTY]
        crashed = report.when not in {"setup", "call", "teardown"}
        if report.when != "teardown" and not crashed:
            return
        self._table.add(rows)
        # A crashed process says nothing of marks: any test may have been one that injects faults.
        injects = crashed or _MARK in report.keywords
        if failed and injects and all(row.injected == row.survived for row in rows):
            self._table.failed_tests.append(report.nodeid)


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.pluginmanager.register(_Reports(session.config.stash[_TABLE]))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workerinput"):
        return
    table = session.config.stash[_TABLE]
    if path := session.config.getoption("--fault-table"):
        Path(path).write_text(table.markdown(), encoding="utf-8")
    if table.failed and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED  # a test may count a failure and pass


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("--print-faults"):
        terminalreporter.section("injected faults")
        terminalreporter.write(config.stash[_TABLE].text())
