"""The S3 policy of infra/s3 allows only the required actions and prefixes."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.support.manifests import INFRA


def test_s3_policy_allows_only_the_required_actions_and_prefixes() -> None:
    statements = {
        statement["Sid"]: statement for statement in json.loads((INFRA / "s3/policy.json").read_text())["Statement"]
    }

    def actions(statement: dict[str, Any]) -> set[str]:
        listed = statement["Action"]
        return {listed} if isinstance(listed, str) else set(listed)

    for statement in statements.values():
        assert statement["Effect"] == "Allow"
        assert not {"NotAction", "NotResource", "Principal"} & set(statement)
        assert not any("*" in action for action in actions(statement))
        bucket, _, prefix = statement["Resource"].removeprefix("arn:aws:s3:::").partition("/")
        assert re.fullmatch(r"[a-z0-9-]+", bucket)
        if actions(statement) == {"s3:ListBucket"}:
            assert prefix == ""
            (condition,) = statement["Condition"].values()
            assert condition == {"s3:prefix": ["valley", "valley/*"]}
        else:
            assert re.fullmatch(r"[a-z]+/\*", prefix)
    read_write = {
        "s3:GetObject",
        "s3:PutObject",
        "s3:DeleteObject",
        "s3:AbortMultipartUpload",
        "s3:ListMultipartUploadParts",
    }
    assert actions(statements["WorkspaceObjects"]) == read_write
    assert actions(statements["InputsObjects"]) == {"s3:GetObject"}
