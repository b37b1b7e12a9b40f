"""Documents of a kind that several threads decode first, together."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.runtime

# In a process of its own: what goes wrong ends it. Kinds are many, and threads take turns often.
SCRIPT = """
import sys, threading
from edge_client.contract.documents import decode_document
sys.setswitchinterval(1e-6)
source = "from __future__ import annotations\\nfrom edge_client.contract.documents import Document\\n"
for number in range(80):
    source += (
        f"class Part{number}(Document, frozen=True, kw_only=True):\\n    names: tuple[str, ...] = ()\\n"
        f"class Whole{number}(Document, frozen=True, kw_only=True):\\n"
        f"    part: Part{number} | None = None\\n    parts: dict[str, Part{number}] = {{}}\\n"
    )
module = type(sys)("kinds")
sys.modules["kinds"] = module
exec(source, module.__dict__)
data = b'{"part": {"names": ["a"]}, "parts": {"b": {"names": []}}}'
decoded = []

def decode(kind, barrier):
    barrier.wait()
    decoded.append(decode_document(kind, data, source="here", limit_bytes=1000))

for number in range(80):
    barrier = threading.Barrier(4)
    arguments = (getattr(module, f"Whole{number}"), barrier)
    threads = [threading.Thread(target=decode, args=arguments) for _ in range(4)]
    [one.start() for one in threads]
    [one.join() for one in threads]
print(len(decoded))
"""


def test_a_kind_that_threads_decode_first_together_is_decoded_by_all() -> None:
    """Msgspec 0.22 ended the process, as a board's whose pages were opened together at its start."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "320")
