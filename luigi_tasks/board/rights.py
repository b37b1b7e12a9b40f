"""Who may do what on the board."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tornado.httputil import HTTPServerRequest

    from luigi_tasks.settings.values import BoardSettings

# Roles, each may all that the one before may.
NOBODY, VIEWER, LABELLER, OPERATOR = "none", "viewer", "labeller", "operator"
ROLES = (NOBODY, VIEWER, LABELLER, OPERATOR)


@dataclasses.dataclass(frozen=True)
class Person:
    """Who sends a request.

    Attributes:
        name: Name in the history of what was done; empty: not known.
        role: One of `ROLES`.
    """

    name: str
    role: str

    @property
    def identity(self) -> str:
        """Whose forms are accepted from this person."""
        return f"{self.name} as {self.role}"

    def may(self, role: str) -> bool:
        """Whether this person may do what that role may."""
        return ROLES.index(self.role) >= ROLES.index(role)


class Rights:
    """The rights of persons.

    Args:
        settings: Section [board].
    """

    def __init__(self, settings: BoardSettings) -> None:
        self._settings = settings

    def person(self, request: HTTPServerRequest) -> Person:  # noqa: ARG002 - tokens come
        """Return who sends a request."""
        return Person("", self._settings.anonymous)
