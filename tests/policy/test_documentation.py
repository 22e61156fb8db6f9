"""docs/key-policy.md shows the generator's own output, and names every finding."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final, get_args

from mrgc.policy import key_policy
from mrgc.policy_review import Code
from tests.policy.terms import SERVICE, TENANT

PAGE: Final = (Path(__file__).parents[2] / "docs" / "key-policy.md").read_text(encoding="utf-8")


def test_the_shown_policy_is_what_the_generator_writes() -> None:
    """The page's JSON equals the generated policy for its own names."""
    (block,) = re.findall(r"^```json\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    pcr0 = re.findall(r'ImageSha384": "([0-9a-f]{96})"', block)[0]
    terms: dict[str, Any] = {"tenant": "acme", "tenant_principal": TENANT, "service_role": SERVICE}
    assert json.loads(block) == key_policy(pcr0=bytes.fromhex(pcr0), **terms)


def test_every_finding_is_explained_and_every_explained_one_exists() -> None:
    """The table of findings and the review name the same codes."""
    table = PAGE.split("| finding | means |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(get_args(Code))
