"""`edge-client`: run, classify, status, update, doctor, export, import.

Exit codes: 0 done; 1 a picture or document cannot be used; 2 wrong usage or settings; 3 signatures do
not hold; 4 store or broker cannot be reached; 5 the device's disk, camera or runtime failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from edge_client import __version__
from edge_client.contract.addresses import without_secrets
from edge_client.contract.errors import (
    DeviceError,
    EdgeError,
    InputError,
    SettingsError,
    TransportError,
    TrustError,
)
from edge_client.contract.text import one_line
from edge_client.machine import machine_name
from edge_client.owner import act_as_owner
from edge_client.reporting.logs import configure_logs
from edge_client.settings.file import DEFAULT_FILE, hurried, load_settings, of_channel, refuse_own_model
from edge_client.settings.readers import read_float_list, read_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from edge_client.commands.doctor import Check
    from edge_client.settings.file import Settings

EXIT_CODES: dict[type[EdgeError], int] = {
    InputError: 1,
    SettingsError: 2,
    TrustError: 3,
    TransportError: 4,
    DeviceError: 5,
}
_SIGINT_EXIT = 130
Number = TypeVar("Number", int, float)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; an error is one paragraph on standard error."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except EdgeError as e:
        sys.stderr.write(f"edge-client: {one_line(without_secrets(str(e)))}\n")
        return next((code for kind, code in EXIT_CODES.items() if isinstance(e, kind)), 1)
    except KeyboardInterrupt:
        return _SIGINT_EXIT
    except BrokenPipeError:
        # The reader went away (`| head`); Python must not fail again when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edge-client", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"edge-client {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    run = commands.add_parser("run", help="serve: classify pictures and follow the channel")
    _add_config(run)
    run.add_argument("--verbose", action="store_true", help="log more")
    run.set_defaults(command=_run)
    _add_classify(commands.add_parser("classify", help="classify picture files with any TFLite classifier"))
    status = commands.add_parser("status", help="show what the daemon does, or did last")
    doctor = commands.add_parser("doctor", help="check everything that this device needs")
    for command, function in ((status, _status), (doctor, _doctor)):
        _add_config(command)
        command.add_argument("--json", action="store_true", help="for machines")
        command.set_defaults(command=function)
    update = commands.add_parser("update", help="let the daemon install the channel's release now")
    _add_config(update)
    update.add_argument(
        "--retry",
        action="store_true",
        help="forget the refusals on this device, and try those releases again",
    )
    update.set_defaults(command=_update)
    export = commands.add_parser("export", help="write the channel's release to a bundle, for a USB stick")
    install = commands.add_parser("import", help="install the release of a bundle, with the same checks")
    for command, function in ((export, _export), (install, _import)):
        _add_config(command)
        command.add_argument("--channel", default="", help="one of [device] more_channels (default: channel)")
        command.add_argument("bundle", type=Path, help="a .tar file")
        command.set_defaults(command=function)
    return parser


def _add_classify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, help="a .tflite image classifier")
    parser.add_argument(
        "--labels", type=Path, help="labels file: lines, CSV or JSON (default: those inside the model)"
    )
    parser.add_argument(
        "--mean",
        type=_numbers,
        default=(),
        help="with --std: input = (pixel - MEAN) / STD; R,G,B or one",
    )
    parser.add_argument("--std", type=_numbers, default=(), help="see --mean")
    parser.add_argument(
        "--input-size", type=_size, default=(), help="side of the input in pixels, or HEIGHTxWIDTH"
    )
    parser.add_argument("--top", type=_positive, default=3, help="labels for each picture (default 3)")
    parser.add_argument("--threads", type=_positive, default=1, help="threads (default 1)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("pictures", type=Path, nargs="+", metavar="PICTURE")
    parser.set_defaults(command=_classify)


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, default=DEFAULT_FILE, help=f"settings file (default {DEFAULT_FILE})"
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        msg = f"{number} is below 1"
        raise argparse.ArgumentTypeError(msg)
    return number


def _numbers(text: str) -> tuple[float, ...]:
    return _given(read_float_list, text)


def _size(text: str) -> tuple[int, ...]:
    return _given(read_size, text)


def _given(read: Callable[[object], tuple[Number, ...]], text: str) -> tuple[Number, ...]:
    """Read an option as the setting of its name is read."""
    try:
        return read(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from e


@contextlib.contextmanager
def _as_file(path: Path | None) -> Iterator[Path | None]:
    """Give a file that can be read twice, and by a child: a copy where it is a pipe, as `<(…)` makes one."""
    if path is None or not path.is_fifo():
        yield path
        return
    with tempfile.NamedTemporaryFile(suffix=".txt") as copy:
        copy.write(path.read_bytes())
        copy.flush()
        yield Path(copy.name)


def _settings(options: argparse.Namespace) -> Settings:
    return load_settings(options.config, machine_name())


def _settings_of_owner(options: argparse.Namespace) -> Settings:
    """Load the settings as whoever asks, and act as the owner of the state folder from then on."""
    settings = _settings(options)
    _act_as_owner(settings)
    return settings


def _act_as_owner(settings: Settings, *, serving_user: int | None = None) -> None:
    from edge_client.state_folder import user_of_daemon  # noqa: PLC0415

    state_dir = settings.device.state_dir
    pictures = [Path(settings.source.path)] if settings.source.kind in {"folder", "files"} else []
    served_by = user_of_daemon(state_dir) if serving_user is None else serving_user
    act_as_owner(state_dir, apart_from=pictures, serving_user=served_by)


def _run(options: argparse.Namespace) -> int:
    configure_logs(logging.DEBUG if options.verbose else logging.INFO)
    settings = _settings(options)
    _act_as_owner(settings, serving_user=os.geteuid())
    try:
        from edge_client.daemon.daemon import run  # noqa: PLC0415 - the other commands start faster
    except Exception as e:
        # Half an upgrade of NumPy or Pillow raises whatever it likes; systemd starts this again.
        way_out = "free memory, or mend the installation (pip install --force-reinstall)"
        msg = f"cannot start: {type(e).__name__}: {e}; {way_out}"
        raise DeviceError(msg) from e

    run(settings)


def _classify(options: argparse.Namespace) -> int:
    from edge_client.serving.model_trial import ModelTrial  # noqa: PLC0415
    from edge_client.settings.own_model import ModelOptions  # noqa: PLC0415

    with _as_file(options.labels) as labels:
        given = ModelOptions(labels, options.mean, options.std, options.input_size)
        if faults := given.faults():
            msg = "; ".join(f"--{fault}".replace("_", "-", 1) for fault in faults)
            raise SettingsError(msg)
        with ModelTrial(options.model, given, options.threads) as trial:
            from edge_client.commands.classify import classify_files  # noqa: PLC0415 - while the child works

            trial.finish()
        return classify_files(
            options.model,
            labels,
            options.pictures,
            options=given,
            threads=options.threads,
            top=options.top,
            as_json=options.json,
            out=sys.stdout,
        )


def _status(options: argparse.Namespace) -> int:
    from edge_client.commands.status import show_status  # noqa: PLC0415

    show_status(_settings_of_owner(options), as_json=options.json)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from edge_client.commands.doctor import examine  # noqa: PLC0415

    configure_logs(logging.WARNING)
    settings = hurried(_settings_of_owner(options))
    checks = examine(settings)
    if options.json:
        content = [{"name": c.name, "passed": c.passed, "detail": c.detail} for c in checks]
        sys.stdout.write(json.dumps({"device": settings.device.id, "checks": content}, indent=2) + "\n")
    else:
        sys.stdout.write("".join(_mark(check) for check in checks))
    return 0 if all(check.passed for check in checks) else 5


def _update(options: argparse.Namespace) -> int:
    from edge_client.state_folder import (  # noqa: PLC0415
        ask_to_forget_refusals,
        signal_daemon,
        was_asked_to_forget_refusals,
    )

    settings = _settings_of_owner(options)
    refuse_own_model(settings, "update")
    state_dir = settings.device.state_dir
    if options.retry:
        ask_to_forget_refusals(state_dir)
    try:
        signal_daemon(state_dir)
    except DeviceError:
        was_asked_to_forget_refusals(state_dir)  # else the next request, of whomever, would forget them
        raise
    sys.stdout.write("update check requested; see the result with `edge-client status`\n")
    return 0


def _export(options: argparse.Namespace) -> int:
    from edge_client.offline.export import export_bundle  # noqa: PLC0415

    configure_logs(logging.WARNING)
    settings = hurried(_settings(options))
    refuse_own_model(settings, "export")
    releases = export_bundle(of_channel(settings, options.channel), options.bundle)
    size_bytes = options.bundle.stat().st_size
    sys.stdout.write(f"{options.bundle}: release {', '.join(releases)}, {size_bytes} bytes\n")
    return 0


def _import(options: argparse.Namespace) -> int:
    from edge_client.offline.importing import import_bundle  # noqa: PLC0415
    from edge_client.repository.bundle_fetcher import open_bundle  # noqa: PLC0415

    configure_logs(logging.WARNING)
    settings = _settings(options)
    refuse_own_model(settings, "import")
    # Opened first, as whoever asks: a stick may be mounted for that user alone.
    with open_bundle(options.bundle) as file:
        _act_as_owner(settings)
        sys.stdout.write(f"{one_line(import_bundle(settings, options.bundle, options.channel, file))}\n")
    return 0


def _mark(check: Check) -> str:
    return f"{'ok  ' if check.passed else 'FAIL'} {check.name:<14} {one_line(check.detail)}\n"


if __name__ == "__main__":
    sys.exit(main())
