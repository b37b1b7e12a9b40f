"""`edge-keys`: make, rotate, renew and publish signing keys; verify what they signed."""

from __future__ import annotations

import argparse
import getpass
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.contract.errors import EdgeError, InputError, TransportError, TrustError
from edge_client.contract.names import ROLLOUTS_ROLE
from edge_client.contract.times import utc_now
from luigi_tasks.release.key_files import (
    PASSPHRASE_VARIABLE,
    ROOT_PASSPHRASE_VARIABLE,
    Passphrases,
    check_passphrase,
    read_passphrase,
)
from luigi_tasks.release.keys import (
    ROOT_ROLE,
    ROOT_YEARS,
    Rotation,
    add_rollouts_key,
    check_vacant,
    make_keys,
    rotate_keys,
)
from luigi_tasks.release.rollouts_key import KEY_FILE, rollouts_key_path
from luigi_tasks.release.signing import PIPELINE_ROLES
from luigi_tasks.settings.files import check_before_luigi

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luigi_tasks.workspace import Workspace


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `edge-keys`; exit code 0, or 1 with one paragraph on stderr."""
    options = _parser().parse_args(arguments)
    try:
        commands = {
            "make": _make,
            "add-rollouts-key": _add_rollouts_key,
            "rotate": _rotate,
            "renew": _renew,
            "publish": _publish,
            "verify": _verify,
        }
        check_before_luigi()
        text = commands[options.command](options)
    except EdgeError as e:
        sys.stderr.write(f"edge-keys: {e}\n")
        return 1
    sys.stdout.write(text)
    return 0


def _make(options: argparse.Namespace) -> str:
    folder = options.folder
    check_vacant(folder)
    make_keys(
        folder,
        root_keys=options.root_keys,
        threshold=options.threshold,
        root_passphrase=_new_root_passphrase(options),
        passphrase=_pipeline_passphrase(options),
    )
    return (
        f"{folder}/root/       take OFFLINE now (a USB stick in a safe); needed only to replace other keys\n"
        f"{folder}/pipeline/   the machine that runs luigi: [trust] keys in luigi.cfg; readable by it alone\n"
        f"{folder}/device/     root.json is public: every device gets it ([trust] root in device.toml; "
        "install -m 644), the pipeline too ([trust] root in luigi.cfg), with rollouts-key.json next to it\n"
        "Whoever holds pipeline/ can publish models to the fleet. Whoever holds root/ owns the fleet.\n"
    )


def _add_rollouts_key(options: argparse.Namespace) -> str:
    folder = options.folder
    if not add_rollouts_key(folder, _pipeline_passphrase(options)):
        return f"{folder}: has a rollouts key already; nothing was changed\n"
    return _explain_rollouts_key(folder)


def _rotate(options: argparse.Namespace) -> str:
    has_rollouts = rollouts_key_path(options.folder / "device/root.json").exists()
    every = (*PIPELINE_ROLES, *((ROLLOUTS_ROLE,) if has_rollouts else ()))
    online = every if options.stolen else tuple(dict.fromkeys(options.role or ()))
    if (options.root_keys or options.threshold) and not options.root:
        raise InputError("--root-keys and --threshold need --root: they apply to new root keys")
    roles = (*online, *((ROOT_ROLE,) if options.root else ())) or every
    rotation = Rotation(roles, options.root_keys, options.threshold, options.stolen, options.years)
    version = rotate_keys(
        options.folder,
        rotation,
        _root_passphrases(options),
        root_passphrase=_given_root_passphrase(options) if options.root else None,
        passphrase=_pipeline_passphrase(options),
    )
    ends = (
        "Content that only the old keys signed is disowned: this machine publishes again what it "
        "remembers to have published, and the next Deploy computes everything in work/ again. With a fleet: "
        "look at its registry, run `edge-fleet registry --accept`, then `edge-fleet rollouts --accept`; the "
        "next Deploy starts again what was rolled out.\n"
        if options.stolen
        else ""
    )
    if roles == (ROLLOUTS_ROLE,):
        return _explain_rollouts_key(options.folder)
    return f"New keys for {', '.join(roles)}.\n" + _explain_root(options.folder, version) + ends


def _renew(options: argparse.Namespace) -> str:
    version = rotate_keys(options.folder, Rotation(years=options.years), _root_passphrases(options))
    return f"The same keys, for {options.years} years more.\n" + _explain_root(options.folder, version)


def _publish(options: argparse.Namespace) -> str:
    from luigi_tasks import steps  # noqa: PLC0415 - the other commands need none of it
    from luigi_tasks.settings.sections import load_settings  # noqa: PLC0415 - imports luigi
    from luigi_tasks.workspace import open_workspace  # noqa: PLC0415 - as above

    settings = load_settings()
    workspace, url = open_workspace(settings), settings.store.url
    text = ""
    if options.force:
        changes = "".join(f"{one}\n" for one in workspace.repository.force())
        text = f"{url}: everything is signed again, above all versions known\n{changes}"
    if options.retry:
        return text + _allow_retry(workspace, options.retry)
    if not options.force and not steps.renew_signatures(workspace):
        return f"{url}: nothing to do; the newest root is there, and signatures are fresh\n"
    return text or f"{url}: the newest root is there, and everything is signed by its keys\n"


def _allow_retry(workspace: Workspace, release: str) -> str:
    """Let devices that refused a release try it again, and tell those that listen."""
    from luigi_tasks import steps  # noqa: PLC0415 - as above
    from luigi_tasks.release.channel import allow_retry  # noqa: PLC0415

    channel = workspace.settings.release.channel
    workspace.repository.publish(
        {}, lambda pointer: allow_retry(pointer, channel, release, at=utc_now()), channel
    )
    done = f"channel {channel}: devices that refused release {release} try it again"
    try:
        steps.announce(workspace)
    except TransportError as e:
        return f"{done} at their next check of the store; it could not be announced: {e}\n"
    return f"{done}\n"


def _new_root_passphrase(options: argparse.Namespace) -> str | None:
    """Return the passphrase of new root keys; None if they shall be plain.

    Raises: InputError if nothing says which, and nobody can be asked.
    """
    if options.no_root_passphrase:
        return None
    if (given := _given_root_passphrase(options)) is not None:
        return given
    if not sys.stdin.isatty():
        msg = (
            "root keys are encrypted: give --root-passphrase-file FILE, whose first line is the passphrase, "
            "or --no-root-passphrase for plain ones"
        )
        raise InputError(msg)
    return _ask_twice("the root keys")


def _ask_twice(keys: str) -> str:
    passphrase = check_passphrase(getpass.getpass(f"Passphrase for {keys}: "))
    if getpass.getpass("The same again: ") != passphrase:
        raise InputError("the two passphrases differ; nothing was made")
    return passphrase


def _given_root_passphrase(options: argparse.Namespace) -> str | None:
    given = read_passphrase(options.root_passphrase_file, ROOT_PASSPHRASE_VARIABLE)
    return None if given is None else check_passphrase(given)


def _pipeline_passphrase(options: argparse.Namespace) -> str | None:
    if options.passphrase_file == "-":  # noqa: S105 - no passphrase
        return _ask_twice("the pipeline's keys")
    given = read_passphrase(options.passphrase_file, PASSPHRASE_VARIABLE)
    return None if given is None else check_passphrase(given)


def _root_passphrases(options: argparse.Namespace) -> Passphrases:
    """Return the given passphrase of the root keys, and a prompt where somebody is there to answer it."""
    given = read_passphrase(options.root_passphrase_file, ROOT_PASSPHRASE_VARIABLE)
    return Passphrases(
        known=() if given is None else (given,),
        ask=(lambda path: getpass.getpass(f"Passphrase of {path}: ")) if sys.stdin.isatty() else None,
        way_out=f"give --root-passphrase-file FILE ({ROOT_PASSPHRASE_VARIABLE}), or use a terminal",
    )


def _verify(options: argparse.Namespace) -> str:
    """Write what made a release; a broken link is an error after it."""
    from luigi_tasks.release.verify import verify_release  # noqa: PLC0415 - the other commands need none of it
    from luigi_tasks.settings.sections import load_settings  # noqa: PLC0415 - imports luigi
    from luigi_tasks.workspace import open_workspace  # noqa: PLC0415 - as above

    store = {"url": options.store} if options.store else {}
    trust = {"root": Path(options.root)} if options.root else {}
    workspace = open_workspace(load_settings(store=store, trust=trust))
    proof = verify_release(workspace.repository.look(), options.release)
    text = proof.to_json() if options.json else proof.in_words()
    if proof.faults:
        sys.stdout.write(text)
        msg = f"release {options.release}: not proven: {'; '.join(proof.faults)}"
        raise TrustError(msg)
    ends = "Signed by the keys of the root; every step stands on the one before, down to the pictures.\n"
    return text if options.json else text + ends


def _explain_root(folder: Path, version: int) -> str:
    return (
        f"{folder}/device/     copy its *.json to where [trust] root in luigi.cfg points: "
        f"{version}.root.json is the new root, root.json is the same for new devices. The others follow by "
        f"themselves\n{folder}/pipeline/   copy to the machine that runs luigi, and remove the old keys "
        f"there\n{folder}/root/       take OFFLINE again, in place of what was there\n{folder}/retired/    "
        "the old keys, where any were replaced; destroy them once devices follow\nNothing changes for the "
        "fleet yet. Where luigi runs, run `edge-keys publish` now (or wait for the next Deploy): it "
        "publishes the new root, then signs everything with the new keys.\n"
    )


def _explain_rollouts_key(folder: Path) -> str:
    return (
        f"{folder}/device/     copy {KEY_FILE} to where [trust] root in luigi.cfg points; devices need "
        f"nothing\n{folder}/pipeline/   copy the new {ROLLOUTS_ROLE}*.pem to the machines that move channels "
        "and rollouts, and remove an old one there; all of them need this version of the pipeline before\n"
        "Where luigi runs with the targets key and this one, run `edge-keys publish` now (or wait for the "
        f"next Deploy): targets.json names the key from then on, and {ROLLOUTS_ROLE}.json says where "
        "channels point.\n"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edge-keys", description="Make and replace the signing keys.")
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="make a full set of keys")
    make.add_argument("folder", type=Path, nargs="?", default=Path("keys"))
    make.add_argument("--root-keys", type=int, default=1, help="number of root keys (default 1)")
    make.add_argument("--threshold", type=int, default=1, help="root keys that must sign (default 1)")
    add = commands.add_parser(
        "add-rollouts-key",
        help="give keys of an earlier version the key that signs rollouts; needs no other key",
    )
    add.add_argument("folder", type=Path, nargs="?", default=Path("keys"))
    rotate = commands.add_parser("rotate", help="replace keys; needs the root keys in FOLDER/root")
    rotate.add_argument("folder", type=Path, nargs="?", default=Path("keys"))
    rotate.add_argument(
        "--role",
        action="append",
        choices=(*PIPELINE_ROLES, ROLLOUTS_ROLE),
        help=f"replace this key; repeatable ({ROLLOUTS_ROLE} alone needs no root key)",
    )
    rotate.add_argument("--root", action="store_true", help="replace the root keys (alone: only them)")
    rotate.add_argument(
        "--stolen",
        action="store_true",
        help="the old keys may be stolen: replace all keys of the pipeline, and sign nothing again that only "
        "they signed",
    )
    rotate.add_argument("--root-keys", type=int, help="with --root: number of root keys (default: as now)")
    rotate.add_argument("--threshold", type=int, help="with --root: how many must sign (default: as now)")
    make_secret = make.add_mutually_exclusive_group()
    make_secret.add_argument(
        "--no-root-passphrase", action="store_true", help="write plain root keys, for automation"
    )
    renew = commands.add_parser("renew", help="sign the same root for more years; needs the root keys")
    renew.add_argument("folder", type=Path, nargs="?", default=Path("keys"))
    publish = commands.add_parser(
        "publish",
        help="publish a new root and sign everything again, where luigi runs and with its luigi.cfg",
    )
    publish.add_argument(
        "--force",
        action="store_true",
        help="sign everything again in any case: after the bucket was restored or damaged. What this machine "
        "remembers counts before what the bucket shows; a channel whose files are gone goes back to what the "
        "bucket has, never to a withdrawn release",
    )
    publish.add_argument(
        "--retry",
        metavar="RELEASE",
        default="",
        help="let devices that refused the release which [release] channel points to try it again, once",
    )
    for command in (make_secret, rotate, renew):
        command.add_argument(
            "--root-passphrase-file",
            default="",
            help="file whose first line is the passphrase of the root keys; default: the file that "
            f"{ROOT_PASSPHRASE_VARIABLE} names, else a prompt",
        )
    for command in (make, add, rotate):
        command.add_argument(
            "--passphrase-file",
            default="",
            help="encrypt the pipeline's new keys with the first line of this file ([trust] passphrase_file "
            f"names it where luigi runs), - asks; default: the file that {PASSPHRASE_VARIABLE} names, else "
            "plain keys",
        )
    verify = commands.add_parser(
        "verify", help="show what made a release, and verify each step; needs the root, and no private key"
    )
    verify.add_argument("release", help="release id")
    verify.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    verify.add_argument("--root", help="root.json (default: [trust] root)")
    verify.add_argument("--store", help="s3:// or file:// address (default: [store] url)")
    for command in (rotate, renew):
        command.add_argument(
            "--years", type=int, default=ROOT_YEARS, help=f"lifetime of the root (default {ROOT_YEARS})"
        )
    return parser


if __name__ == "__main__":
    sys.exit(main())
