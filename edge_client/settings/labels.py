"""Labels that the settings name, compared with those of the releases: a misspelt one does nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_client.contract.nearest import nearest

if TYPE_CHECKING:
    from collections.abc import Collection

    from edge_client.settings.frames import InboxSettings
    from edge_client.settings.results import ActionSettings

# A model may have a thousand.
_SHOWN = 20


def unknown_watched(action: ActionSettings, known: Collection[str]) -> str | None:
    """Return a warning of watched labels that no serving release has; None if there are none.

    Args:
        action: Section [action].
        known: Labels of the serving releases of all channels.
    """
    return _warn("[action] labels", action.labels, known, "nothing switches for it")


def unknown_private(inbox: InboxSettings, known: Collection[str]) -> str | None:
    """Return a warning of private labels that no release has; None if there are none.

    Args:
        inbox: Section [inbox].
        known: Labels of the serving and the shadow releases of all channels.
    """
    wanted = inbox.never_labels if inbox.keeps else ()
    return _warn("[inbox] never_labels", wanted, known, "frames that show it are kept")


def _warn(setting: str, wanted: Collection[str], known: Collection[str], effect: str) -> str | None:
    unknown = [label for label in dict.fromkeys(wanted) if label not in known]
    if not unknown:
        return None
    near = {label: nearest(label, known) for label in unknown}
    told = ", ".join(f"{one} (did you mean {near[one]}?)" if near[one] else one for one in unknown)
    shown = sorted(known)
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    there = "" if all(near.values()) else f"; there are {', '.join(shown[:_SHOWN])}{more}"
    return f"{setting}: no release here has {told}, so {effect}; correct it{there}"
