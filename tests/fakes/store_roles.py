"""Roles with the IAM policies of configs/, for a prefix of their own in the store that tests share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
ROLES = ("pipeline", "device", "collector", "approver")
# The device, in the place of the variable that AWS IoT Core fills in.
DEVICE = "camera-1"
THING = "${credentials-iot:ThingName}"
PREFIX = "rights"


def role_policies() -> dict[str, str]:
    """Return the policy of each role as JSON."""
    return {f"ROLE-{role}": json.dumps(_below(role_policy(role))) for role in ROLES}


def role_policy(role: str) -> dict[str, Any]:
    """Return the policy of a role, with the variable filled in."""
    text = (CONFIGS / f"iam-{role}.json").read_text()
    return dict(json.loads(text.replace(THING, DEVICE)))


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
