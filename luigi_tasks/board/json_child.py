"""Children of the board that are asked one thing and answer it, in JSON: what takes more memory than it has.

    python -m luigi_tasks.board.rollouts.child  < {"what": "look", "channel": "stable"}

A child has the settings of the board, since it starts in the same folder, and ends with the board.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, TypeVar

import msgspec

from edge_client.children import die_with_parent, environment, prefer_as_oom_victim, python_command, secrets
from edge_client.contract.errors import TransportError

if TYPE_CHECKING:
    from collections.abc import Callable

OrderT = TypeVar("OrderT", bound=msgspec.Struct)
AnswerT = TypeVar("AnswerT", bound=msgspec.Struct)


async def ask_child(
    module: str, order: msgspec.Struct, answer: type[AnswerT], limit_s: float, what: str
) -> AnswerT:
    """Return what a child answers.

    Args:
        module: Its module, whose main is `answer_order`.
        order: What it is asked.
        answer: What it answers.
        limit_s: Time to wait for it, seconds; it is killed then.
        what: What it does, for messages.
    Raises: TransportError if it ends without an answer, or takes too long.
    """
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *python_command(module), stdin=pipe, stdout=pipe, env={**environment(), **secrets()}
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(msgspec.json.encode(order)), limit_s)
        return msgspec.json.decode(out, type=answer)
    except asyncio.TimeoutError:
        msg = f"{what}: not done within {limit_s:.0f} s: the store is slow, or away; try again later"
        raise TransportError(msg) from None
    except msgspec.DecodeError as e:
        msg = f"{what}: its process ended with {process.returncode}; see the board's log"
        raise TransportError(msg) from e
    finally:
        if process.returncode is None:
            process.kill()


def answer_order(kind: type[OrderT], work: Callable[[OrderT], msgspec.Struct]) -> int:
    """Answer the order on standard input; the main of a child."""
    die_with_parent()
    prefer_as_oom_victim()
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=kind)
    sys.stdout.buffer.write(msgspec.json.encode(work(order)))
    return 0
