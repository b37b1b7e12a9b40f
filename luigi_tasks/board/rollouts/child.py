"""What reads a whole snapshot of the fleet, in a process of its own: a look, a dry run, a start.

A snapshot of 100,000 devices takes 700 MB, which the board's own process does not have. What a killed child
began, the next look finishes.

    python -m luigi_tasks.board.rollouts.child  < {"what": "look", "channel": "stable"}
"""

from __future__ import annotations

import msgspec

from edge_client.contract.errors import EdgeError, InputError, TransportError
from luigi_tasks.board.json_child import answer_order, ask_child
from luigi_tasks.fleet.records import RolloutRecord  # noqa: TC001 - msgspec reads it

LOOK, DRAFT, START = "look", "draft", "start"
# Judging 100,000 devices takes half a minute.
LIMIT_S = 300.0


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done.

    Attributes:
        what: `look`, `draft` or `start`.
        channel: The channel.
        release: Release that is to be rolled out.
        who: The person.
        skip_incompatible: Whether devices that cannot run it are left out.
    """

    what: str
    channel: str
    release: str = ""
    who: str = ""
    skip_incompatible: bool = False


class Done(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What came of it.

    Attributes:
        words: In a sentence.
        rollout: The rollout; None: none runs.
        error: Why it could not be; empty: it could.
        is_input: Whether that is the fault of who asked.
    """

    words: str = ""
    rollout: RolloutRecord | None = None
    error: str = ""
    is_input: bool = False


async def in_child(order: Order, limit_s: float = LIMIT_S) -> Done:
    """Return what came of an order that a child carried out.

    Raises: InputError, TransportError.
    """
    what = f"channel {order.channel}, {order.what}"
    done = await ask_child(__name__, order, Done, limit_s, what)
    if done.error:
        raise InputError(done.error) if done.is_input else TransportError(done.error)
    return done


def carry_out(order: Order) -> Done:
    """Do what an order says.

    Raises: EdgeError.
    """
    from luigi_tasks.fleet.actions import open_fleet  # noqa: PLC0415 - in the child alone
    from luigi_tasks.fleet.plans import plan_of  # noqa: PLC0415 - as above
    from luigi_tasks.settings.sections import load_settings  # noqa: PLC0415 - imports Luigi

    settings = load_settings()
    fleet, channel = open_fleet(settings), order.channel
    if order.what == LOOK:
        look = fleet.advance(channel)
        return Done(words=look.words, rollout=look.record)
    plan, skip = plan_of(settings.rollout), order.skip_incompatible
    if order.what == DRAFT:
        drafted = fleet.draft(channel, order.release, plan, order.who, skip_incompatible=skip)
        return Done(words=drafted.events[0].why, rollout=drafted)
    fleet.start(channel, order.release, plan, order.who, skip_incompatible=skip)
    look = fleet.advance(channel)
    return Done(words=look.words, rollout=look.record)


def answer(order: Order) -> Done:
    """Do what an order says, or tell why it cannot be."""
    try:
        return carry_out(order)
    except EdgeError as e:
        return Done(error=str(e), is_input=isinstance(e, InputError))


if __name__ == "__main__":
    raise SystemExit(answer_order(Order, answer))
