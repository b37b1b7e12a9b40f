"""Boards whose processors are emulated, and the releases of Debian that they run."""

from __future__ import annotations

import dataclasses
import os


@dataclasses.dataclass(frozen=True)
class Board:
    """A board's processor, for the emulator and for what reads `/proc/cpuinfo`.

    Attributes:
        name: As printed.
        processor: The emulator's name of it.
        part: CPU part, of the main identification register; the implementer is Arm, 0x41.
        features: As Linux names them.
    """

    name: str
    processor: str
    part: str
    features: str

    def cpuinfo(self) -> str:
        """Return `/proc/cpuinfo` of this board.

        The emulator shows the host's, which names no Arm processor: XNNPACK ends with a segmentation fault.
        """
        cores = [
            f"processor\t: {core}\nBogoMIPS\t: 108.00\nFeatures\t: {self.features}\n"
            f"CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {self.part}\n"
            "CPU revision\t: 3\n\n"
            for core in range(os.cpu_count() or 1)
        ]
        return "".join(cores) + f"Model\t\t: {self.name}\n"


_V8_0 = "fp asimd evtstrm crc32 cpuid"
# No board has what the emulator's default processor, `max`, adds (SVE, matrix instructions). There, XNNPACK
# takes kernels that no Raspberry Pi runs, and int8 answers are wrong.
BOARDS = {
    "pi3": Board("Raspberry Pi 3 Model B Rev 1.2", "cortex-a53", "0xd03", _V8_0),
    "pi4": Board("Raspberry Pi 4 Model B Rev 1.4", "cortex-a72", "0xd08", _V8_0),
    "pi5": Board(
        "Raspberry Pi 5 Model B Rev 1.0",
        "cortex-a76",
        "0xd0b",
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
    ),
}


@dataclasses.dataclass(frozen=True)
class Variant:
    """A release of Debian for Arm.

    Attributes:
        suite: Debian's name of the release.
        architecture: Debian's name of the architecture.
        python: Version of its interpreter.
        board: Which one it runs on, unless another is asked for.
    """

    suite: str
    architecture: str
    python: str
    board: str


VARIANTS = {
    "bookworm": Variant("bookworm", "arm64", "3.11", "pi4"),
    "trixie": Variant("trixie", "arm64", "3.13", "pi5"),
}
EMULATORS = {"arm64": ("qemu-aarch64-static", "qemu-aarch64")}
