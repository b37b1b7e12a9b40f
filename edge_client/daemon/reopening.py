"""When a release that cannot serve now is tried again: soon, then every few minutes, and on request."""

from __future__ import annotations

# Between two tries; the last one again and again.
WAITS_S = (1.0, 3.0, 10.0, 30.0, 60.0, 120.0)
# Tries in this process before another process tries too: a fault that passes needs no second one.
TRIES_BEFORE_PROBE = 4


class Reopening:
    """Schedule of the tries; all times are monotonic seconds."""

    def __init__(self, now: float) -> None:
        self._tries = 0
        self._next = now + WAITS_S[0]

    def due_in(self, now: float) -> float:
        """Return the seconds until the next try; 0 if it is due."""
        return max(self._next - now, 0.0)

    def request(self, now: float) -> None:
        """Make a try due now, in another process too."""
        self._next = now
        self._tries = max(self._tries, TRIES_BEFORE_PROBE)

    def needs_probe(self) -> bool:
        """Return whether another process shall try, if the next try in this one fails."""
        return self._tries >= TRIES_BEFORE_PROBE

    def note_try(self, now: float, *, changed: bool) -> None:
        """Schedule the next try after one; the waits begin anew if something else serves now."""
        self._next = now + WAITS_S[min(self._tries, len(WAITS_S) - 1)]
        self._tries = 0 if changed else self._tries + 1
