"""`edge-keys`: makes the signing keys and says where each belongs."""

from __future__ import annotations

import argparse
import datetime
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.contract.errors import EdgeError, InputError
from edge_client.files import write_durably
from luigi_tasks.signing import ONLINE_ROLES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from securesystemslib.signer import CryptoSigner

ROOT_YEARS = 5


def make_keys(folder: Path, *, root_keys: int = 1, threshold: int = 1, years: int = ROOT_YEARS) -> None:
    """Write a new set of keys and the root document that names them.

    Args:
        folder: Gets `root/root-N.pem`, `pipeline/{targets,snapshot,timestamp}.pem`, `device/root.json`.
        root_keys: How many root keys.
        threshold: How many of them must sign a new root.
        years: Lifetime of the root document.
    Raises: InputError if `folder` has keys already: overwriting them would orphan every device.
    """
    from securesystemslib.signer import CryptoSigner  # noqa: PLC0415
    from tuf.api.metadata import Metadata, Root  # noqa: PLC0415

    if any(folder.rglob("*.pem")) or (folder / "device" / "root.json").exists():
        msg = f"{folder}: holds keys already; choose another folder"
        raise InputError(msg)
    if not 1 <= threshold <= root_keys:
        msg = f"threshold {threshold} of {root_keys} root keys: give 1 to {root_keys}"
        raise InputError(msg)
    root = Root(consistent_snapshot=True, expires=_in_years(years))
    root_signers = [CryptoSigner.generate_ed25519() for _ in range(root_keys)]
    for number, signer in enumerate(root_signers, start=1):
        root.add_key(signer.public_key, Root.type)
        _write_key(folder / "root" / f"root-{number}.pem", signer)
    root.roles[Root.type].threshold = threshold
    for role in ONLINE_ROLES:
        signer = CryptoSigner.generate_ed25519()
        root.add_key(signer.public_key, role)
        _write_key(folder / "pipeline" / f"{role}.pem", signer)
    metadata = Metadata(root)
    for signer in root_signers:
        metadata.sign(signer, append=True)
    write_durably(folder / "device" / "root.json", metadata.to_bytes())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `edge-keys`; exit code 0, or 1 with one paragraph on stderr."""
    options = _parser().parse_args(arguments)
    try:
        make_keys(options.folder, root_keys=options.root_keys, threshold=options.threshold)
    except EdgeError as e:
        sys.stderr.write(f"edge-keys: {e}\n")
        return 1
    sys.stdout.write(_explain(options.folder))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edge-keys", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="make a full set of keys")
    make.add_argument("folder", type=Path, nargs="?", default=Path("keys"))
    make.add_argument("--root-keys", type=int, default=1, help="number of root keys (default 1)")
    make.add_argument("--threshold", type=int, default=1, help="root keys that must sign (default 1)")
    return parser


def _explain(folder: Path) -> str:
    return (
        f"{folder}/root/       take OFFLINE now (a USB stick in a safe); needed only to replace other keys\n"
        f"{folder}/pipeline/   the machine that runs luigi: [trust] keys in luigi.cfg; readable by it alone\n"
        f"{folder}/device/     root.json is public: every device gets it ([trust] root in device.toml), "
        "the pipeline too ([trust] root in luigi.cfg)\n"
        "Whoever holds pipeline/ can publish models to the fleet. Whoever holds root/ owns the fleet.\n"
    )


def _in_years(years: int) -> datetime.datetime:
    now = datetime.datetime.now(datetime.timezone.utc)
    return (now + datetime.timedelta(days=365 * years)).replace(microsecond=0)


def _write_key(path: Path, signer: CryptoSigner) -> None:
    # write_durably's temporary file, and so the result, is readable by its owner alone.
    write_durably(path, signer.private_bytes)
    path.parent.chmod(0o700)


if __name__ == "__main__":
    sys.exit(main())
