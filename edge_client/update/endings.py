"""How a try of a release can end on this device, and what follows. Pure: values in, values out.

A signed release is tried in its self-test, in shadow mode and on probation. What ends a try may be the fault
of the release, of this machine, or of nobody:

    PROOF    Wrong answers, too slow at its best, worse than the release before, or a document or model that
             this software cannot use. It would end so again: refused for good.
    TWICE    The runtime crashed or failed by itself. A loose memory module does that once, a model does it
             again: refused for good if it happens once more, after `failures.A_WHILE_S`.
    LIMITED  Killed, stopped, out of memory, or the whole machine went down. It passes, unless the model is
             the cause, as one that takes all memory is: tried again after each of `failures.RETRY_WAITS_S`,
             then refused for `failures.REFUSED_S`.
    ENDLESS  The model was not even loaded: the disk, the runtime or a new process failed. Tried again for as
             long as it takes.

A memory limit that a model hits ([update] self_test_memory_bytes) is LIMITED too. The limit counts what the
libraries of this machine take as well, and overcommit, other settings and other threads move it.

A restart tries at once, and counts: a model that takes the whole machine down has no more tries than another.
A request tries at once and does not count, since it may come from an untrusted broker. Times are compared
with the system clock: a failure that lies in the future, because the clock went back, may be tried again now.
"""

from __future__ import annotations

import enum


class Blame(enum.Enum):
    """What an ending says about a release; see the module's theory."""

    PROOF = "refused for good"
    TWICE = "refused for good if it happens once more after a while"
    LIMITED = "tried again a few times, then refused for a week"
    ENDLESS = "tried again until it works"


class Ending(enum.Enum):
    """How a try of a release ended; the lower-case name goes into `slots.json`."""

    WRONG_ANSWERS = Blame.PROOF, "its answers differ from the signed ones"
    TOO_SLOW = Blame.PROOF, "too slow at its best for [device] latency_budget_ms"
    UNUSABLE = Blame.PROOF, "its document or model cannot be used by this software"
    WORSE = Blame.PROOF, "its answers are worse than those of the release before on live frames"
    CRASHED_SERVING = Blame.PROOF, "the runtime crashed in it twice on live frames, and the daemon with it"
    CRASHED = Blame.TWICE, "the runtime crashed by itself: SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGTRAP"
    FRAMES_FAILED = Blame.TWICE, "the runtime failed on too many live frames"
    SLOWER = Blame.LIMITED, "slower than allowed on live frames, as on a machine that was busy meanwhile"
    KILLED = Blame.LIMITED, "another signal ended it, as SIGKILL does when memory runs out"
    TIMED_OUT = Blame.LIMITED, "no verdict in time: stopped, a busy machine, or a model that hangs"
    OUT_OF_MEMORY = Blame.LIMITED, "the machine's memory, or [update] self_test_memory_bytes"
    NO_VERDICT = Blame.LIMITED, "the process ended by itself without a verdict"
    INTERRUPTED = Blame.LIMITED, "the machine, the daemon or the update check went down during the self-test"
    DAEMON_ENDED = Blame.LIMITED, "the daemon ended again and again while it served, for an unknown reason"
    DISK = Blame.ENDLESS, "a file could not be read or written"
    NO_PROCESS = Blame.ENDLESS, "no process or thread could be started"
    NO_RUNTIME = Blame.ENDLESS, "the runtime cannot be imported, or does not fit NumPy"

    @property
    def blame(self) -> Blame:
        """What it says about the release."""
        return self.value[0]

    @property
    def meaning(self) -> str:
        """What happened, for people."""
        return self.value[1]


class Retry(enum.Enum):
    """How an update check treats the failures of the channel's release."""

    DUE = "tried again if it is time"
    RESTART = "tried again now; the first check after a start"
    REQUESTED = "tried again now, and a failure does not count"
    FORGIVE = "all failures and refusals are forgotten"


def find_ending(error: BaseException, default: Ending = Ending.UNUSABLE) -> Ending:
    """Return how a try ended with an error: by its cause, if that is this machine's.

    Pillow raises an OSError for a malformed picture too, which has no error number.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or "bad_alloc" in str(cause):
            return Ending.OUT_OF_MEMORY
        if isinstance(cause, OSError) and cause.errno is not None:
            return Ending.DISK
        if isinstance(cause, (ImportError, SystemError)):
            return Ending.NO_RUNTIME
        if isinstance(cause, RuntimeError) and "start new thread" in str(cause):
            return Ending.NO_PROCESS
        cause = cause.__cause__ or cause.__context__
    return default
