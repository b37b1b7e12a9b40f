"""Who may do what on the board.

A person is who shows a token (a program in `Authorization: Bearer`, a browser by the cookie that it got for
one), else who a trusted proxy says, else anybody (`[board] anonymous`).
"""

from __future__ import annotations

import dataclasses

# Roles, each may all that the one before may.
NOBODY, VIEWER, LABELLER, OPERATOR = "none", "viewer", "labeller", "operator"
ROLES = (NOBODY, VIEWER, LABELLER, OPERATOR)


@dataclasses.dataclass(frozen=True)
class Person:
    """Who sends a request.

    Attributes:
        name: Name in the history of what was done; empty: not known.
        role: One of `ROLES`.
        by: How that is known: `token`, `sign-in`, `proxy`; empty: it is not.
        identity: Whose forms are accepted from this person.
        fault: Why what was shown does not count; empty: it does, or nothing was.
    """

    name: str
    role: str
    by: str = ""
    identity: str = ""
    fault: str = ""

    def may(self, role: str) -> bool:
        """Whether this person may do what that role may."""
        return ROLES.index(self.role) >= ROLES.index(role)
