"""What a `luigi --module luigi_tasks` command says, checked before Luigi takes it up.

Luigi answers a wrong option with pages of usage, a wrong task or value with a traceback, and both with exit
codes of their own; a luigid that is not there with a minute of tracebacks. Luigi loads the module that holds
the tasks before it looks at them, so this is the first place that knows them.
"""

from __future__ import annotations

import configparser
import difflib
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import luigi
from luigi.cmdline_parser import CmdlineParser
from luigi.retcodes import retcode
from luigi.task_register import Register

from edge_client.contract.errors import EdgeError, SettingsError
from edge_client.contract.text import one_line
from luigi_tasks.logs import log_errors_as_messages
from luigi_tasks.luigid import EXIT_CODES, check_answers, scheduler_url
from luigi_tasks.settings.given import read_given
from luigi_tasks.settings.reading import read_value
from luigi_tasks.settings.sections import SECTIONS, find_unknown_settings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from luigi_tasks.settings.given import GivenSettings

MODULE = "luigi_tasks"
_HELP = {"--help", "--help-all"}
# The task that has an option with which those of a section begin.
_RELEASE_OPTION = {"Rollout"}


def check_command(arguments: Sequence[str], tasks: Sequence[str]) -> None:
    """Check a command of Luigi that names this package; a fault ends the process with one paragraph.

    Args:
        arguments: The arguments of the process.
        tasks: Names of the tasks that a person may start.
    """
    log_errors_as_messages()
    if not _names_module(arguments):
        return
    if _RELEASE_OPTION & {*arguments}:
        _take_options_as_written()
    configuration: Any = luigi.configuration.get_config()
    for name, code in EXIT_CODES.items():
        if not configuration.has_option("retcode", name):
            configuration.set("retcode", name, str(code))
    if _HELP & {*arguments}:
        return
    code = EXIT_CODES["unhandled_exception"]
    try:
        files = read_given()
        faults = [*find_unknown_settings(files), *_find_luigi_faults(files)]
        if faults:
            msg = f"settings: {'; '.join(faults)}"
            raise SettingsError(msg)
        code = int(retcode().unhandled_exception)
        options = _parse(arguments, tasks)
        check_answers(scheduler_url(_core_options(options)))
    except EdgeError as e:
        sys.stderr.write(f"luigi: {one_line(str(e))}\n")
        sys.exit(code)


def _take_options_as_written() -> None:
    """Let Luigi take no beginning of an option for the option.

    It reads the options once without those of the task, where the `--release` of Rollout would be the
    beginning of `--release-channel` and others.
    """
    luigis: Any = CmdlineParser
    build = luigis._build_parser  # noqa: SLF001 - as in _parser

    def build_exact(*args: Any, **kwargs: Any) -> argparse.ArgumentParser:  # noqa: ANN401 - Luigi's
        parser: argparse.ArgumentParser = build(*args, **kwargs)
        parser.allow_abbrev = False
        return parser

    luigis._build_parser = staticmethod(build_exact)  # noqa: SLF001 - as above


def _names_module(arguments: Sequence[str]) -> bool:
    """Whether Luigi was told to load this package, and so reads these arguments."""
    pairs = zip(arguments, [*arguments[1:], ""], strict=False)
    named = [one.partition("=")[2] or after for one, after in pairs if one.partition("=")[0] == "--module"]
    return any(one.split(".")[0] == MODULE for one in named)


def _find_luigi_faults(files: GivenSettings) -> list[str]:
    """Return one sentence for each value in a section of Luigi's own, or of a task, that cannot be read."""
    configuration: Any = luigi.configuration.get_config()
    faults = []
    for section in sorted(files.keys() & {*Register.task_names()} - SECTIONS.keys()):
        parameters = dict(Register.get_task_cls(section).get_params())
        for name, given in files[section].items():
            if name not in parameters:
                continue
            try:
                parameters[name].normalize(parameters[name].parse(configuration.get(section, name)))
            except (ValueError, TypeError) as e:
                faults.append(f"{given.place}: [{section}] {name} = {given.value}: {e}")
            except configparser.InterpolationError:
                faults.append(f"{given.place}: [{section}] {name}: Luigi takes % for its own here; write %%")
    return faults


def _parse(arguments: Sequence[str], tasks: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command, as Luigi's own parser reads them.

    Raises: SettingsError for what Luigi would not take.
    """
    families = {*Register.task_names()}
    likely = next((one for one in arguments if one in families), None)
    options, others = _parser(likely).parse_known_args(arguments)  # making a parser takes a while
    family = options.root_task
    if family is None:
        msg = f"no task is named; there are {', '.join(tasks)}"
        raise SettingsError(msg)
    if family not in families:
        msg = f"{family}: no such task; {_meant(family, tasks) or 'there are ' + ', '.join(tasks)}"
        raise SettingsError(msg)
    if family != likely:
        options, others = _parser(family).parse_known_args(arguments)
    if others:
        known = [option for option, _, _ in _options(family)]
        name = others[0].partition("=")[0]
        hint = _meant(name, known) or f"luigi --module {MODULE} {family} --help-all lists all"
        what = f"no such option of {family}" if name.startswith("-") else f"only one task is run, {family}"
        msg = f"{name}: {what}; {hint}"
        raise SettingsError(msg)
    for option, dest, parameter in _options(family):
        if (fault := _find_fault(parameter, getattr(options, dest, None))) is not None:
            msg = f"{option} = {getattr(options, dest)}: {fault}"
            raise SettingsError(msg)
    _check_needed(family, options)
    return options


def _parser(family: str | None = None) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = CmdlineParser._build_parser(family)  # noqa: SLF001 - no other way to its options

    def refuse(message: str) -> NoReturn:
        raise SettingsError(message)

    parser.error = refuse  # type: ignore[method-assign]
    return parser


def _options(family: str) -> Iterator[tuple[str, str, Any]]:
    """Return option, name among the parsed options, and parameter of each that a command may give."""
    for task, is_without_section, name, parameter in Register.get_all_params():
        option = name if is_without_section else f"{task}_{name}"
        yield f"--{option}".replace("_", "-"), f"{task}_{name}", parameter
        if task == family:
            yield f"--{name}".replace("_", "-"), name, parameter


def _find_fault(parameter: Any, value: str | bool | None) -> str | None:  # noqa: ANN401 - of any kind
    """Return why an option cannot have a value; None where it can, or where it is a text of any kind."""
    if not value or value is True:
        return None
    try:
        read_value(parameter, value)
    except ValueError as e:
        return str(e)
    return None


def _check_needed(family: str, options: argparse.Namespace) -> None:
    """Refuse a task without an option that it cannot do without.

    Raises: SettingsError.
    """
    for name, parameter in Register.get_task_cls(family).get_params():
        given = getattr(options, name, None) or getattr(options, f"{family}_{name}", None)
        if not given and not parameter.has_task_value(family, name):
            option = f"--{name}".replace("_", "-")
            msg = f"{family} needs {option}: {parameter.description or name}"
            raise SettingsError(msg)


def _core_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options of Luigi's section [core], such as --scheduler-host, that are given."""
    given = {
        name: (parameter, getattr(options, f"core_{name}", None))
        for name, parameter in Register.get_task_cls("core").get_params()
    }
    return {name: parameter.parse(value) for name, (parameter, value) in given.items() if value}


def _meant(name: str, known: Sequence[str]) -> str:
    by_lower = {one.lower(): one for one in known}
    alike = difflib.get_close_matches(name.lower(), by_lower, 1)
    return f"did you mean {by_lower[alike[0]]}?" if alike else ""
