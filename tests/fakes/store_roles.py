"""Roles with the IAM policies of configs/, for a prefix of their own in the store that tests share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
ROLES = ("pipeline", "device", "collector", "approver", "board")
# The variable that AWS IoT Core fills in, and the one of a store whose users are the devices.
THING, USER = "${credentials-iot:ThingName}", "${aws:username}"
PREFIX = "rights"


def access_key(role: str) -> str:
    """Return the access key, and name, of who has a role: of the device, its id."""
    return "camera-1" if role == "device" else f"ROLE-{role}"


def role_policies() -> dict[str, str]:
    """Return the policy of each role as JSON, by access key."""
    return {access_key(role): json.dumps(_below(role_policy(role))) for role in ROLES}


def role_policy(role: str) -> dict[str, Any]:
    """Return the policy of a role, as docs/enrolment.md has it for a store of one's own."""
    text = (CONFIGS / f"iam-{role}.json").read_text()
    return dict(json.loads(text.replace(THING, USER)))


def _below(policy: dict[str, Any]) -> dict[str, Any]:
    """Put what a policy says of keys below the prefix."""
    bucket = "arn:aws:s3:::edge-models"
    for statement in policy["Statement"]:
        resources = statement["Resource"]
        listed = [resources] if isinstance(resources, str) else resources
        statement["Resource"] = [one.replace(f"{bucket}/", f"{bucket}/{PREFIX}/") for one in listed]
        if "Condition" in statement:
            wanted = statement["Condition"]["StringLike"]["s3:prefix"]
            statement["Condition"]["StringLike"]["s3:prefix"] = [f"{PREFIX}/{one}" for one in wanted]
    return policy
