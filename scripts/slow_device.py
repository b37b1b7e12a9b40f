"""`edge-client` on a slower runtime: LiteRT with its reference kernels, as on a board without a fast one.

The demo of a fleet runs some of its devices so. Only the daemon itself is slow: its children, such as a
self-test, find the runtime of this environment.
"""

from __future__ import annotations

import functools
import sys
from types import SimpleNamespace
from typing import Any

from ai_edge_litert.interpreter import Interpreter, OpResolverType

from edge_client import cli
from edge_client.inference import runtime

NAME = "litert-reference-kernels"


def find_slow_runtime() -> tuple[str, Any]:
    """Return name and module of the slower runtime, as `runtime._find_runtime` does."""
    slow = functools.partial(Interpreter, experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    return NAME, SimpleNamespace(Interpreter=slow)


if __name__ == "__main__":
    runtime._find_runtime = find_slow_runtime  # noqa: SLF001 - there is no setting for a bad runtime
    sys.exit(cli.main())
