"""What loosens a key's policy: a pure judgement over the live policy text and the key's grants.

Measured against docs/spec.md §7, with every doubt counted against the policy: a statement that this module cannot
read as harmless is a finding. What the reviewer does not say (who the tenant is, which role serves, which image) is
taken from the policy itself where it names exactly one, and shown. Called by `mrgc.cli_policy`. May import: the
standard library, mrgc.errors, mrgc.policy, mrgc.policy_statements. It talks to nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from mrgc.policy import CONTEXT_CONDITION, JOB_ACCESS, JSON_ACCESS, PCR_CONDITION, TENANT_KEY, USE_KEY
from mrgc.policy_statements import ANYONE, ATTESTATION, EXACT, Statement, account_of, parse_statements, principal_of

#: Actions by which data keys, plaintext or the policy itself come into other hands, or objects are forged.
DANGEROUS: Final = (
    "kms:CreateGrant",
    "kms:Decrypt",
    "kms:Encrypt",
    "kms:GenerateDataKey",
    "kms:GenerateDataKeyPair",
    "kms:GenerateDataKeyPairWithoutPlaintext",
    "kms:GenerateDataKeyWithoutPlaintext",
    "kms:ImportKeyMaterial",
    "kms:PutKeyPolicy",
    "kms:ReEncryptFrom",
    "kms:ReEncryptTo",
    "kms:ReplicateKey",
)
#: By these even the tenant's own principal moves access to where this policy no longer decides.
DELEGATING: Final = ("kms:CreateGrant", "kms:ReEncryptFrom", "kms:ReEncryptTo", "kms:ReplicateKey")
#: Those of `DANGEROUS` that take a Recipient (AWS KMS API Reference): no other can meet an attestation condition.
ATTESTABLE: Final = ("kms:Decrypt", "kms:GenerateDataKey", "kms:GenerateDataKeyPair")

_PARENT_KEYS: Final = (PCR_CONDITION.format(3), PCR_CONDITION.format(4))


#: What can be found, each explained in docs/key-policy.md.
Code = Literal[
    "delegation",
    "grant",
    "image_not_pinned",
    "json_protocol",
    "no_context",
    "no_deny",
    "other_action",
    "other_image",
    "other_principal",
    "parent_only",
    "unattested",
    "weak_deny",
    "wildcard_principal",
    "zero_pcr",
]


class Grant(NamedTuple):
    """A grant on the key: access beside the policy (AWS: KMS Developer Guide, "Grants in AWS KMS")."""

    grantee: str
    operations: tuple[str, ...]


class Finding(NamedTuple):
    """One thing that loosens the policy: a stable code, the statement's Sid ("" for none), and a sentence."""

    code: Code
    sid: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the reviewer says about the key; None leaves it to the policy.

    Attributes:
        pcrs: measurements of the image, with PCR0.
        json_protocol: whether the tenant wants what the JSON protocol needs (docs/spec.md §8).
    """

    key_arn: str
    tenant: str
    tenant_principal: str | None = None
    service_role: str | None = None
    pcrs: Mapping[int, bytes] | None = None
    json_protocol: bool = False


@dataclass(frozen=True, slots=True)
class Review:
    """The judgement: nothing loosens the policy if `findings` is empty. Notes are facts that a reviewer should know."""

    tenant_principal: str | None
    service_role: str | None
    images: tuple[str, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]


def review(policy: str, grants: Sequence[Grant], expected: Expected) -> Review:
    """Judge a key's policy and grants.

    Args:
        policy: the text that GetKeyPolicy answers.
        grants: what ListGrants answers.
        expected: what the reviewer knows.

    Raises:
        FormatError: the text is not a key policy.
    """
    statements = tuple(each for each in parse_statements(policy) if each.covers(expected.key_arn))
    reading = _Reading(statements, expected)
    findings = [
        *(finding for each in statements if each.allows for finding in reading.allowed(each)),
        *reading.denied(),
        *(Finding("grant", "", _said_grant(each)) for each in grants),
    ]
    return Review(
        tenant_principal=reading.tenant_principal,
        service_role=reading.service_role,
        images=tuple(sorted(reading.images)),
        findings=tuple(dict.fromkeys(findings)),
        notes=tuple(reading.notes()),
    )


class _Reading:
    """A policy's statements with the roles in it: who is the tenant, who serves, which images are pinned."""

    def __init__(self, statements: Sequence[Statement], expected: Expected) -> None:
        self._statements = statements
        self._expected = expected
        allowing = [each for each in statements if each.allows and _dangers(each)]
        own = expected.tenant_principal or _only(
            name
            for each in allowing
            if not each.is_attested and each.has("kms:PutKeyPolicy")
            for name in each.principals
        )
        self.tenant_principal = principal_of(own) if own else None
        self._attested = [each for each in allowing if each.is_attested]
        served = {name for each in self._attested for name in each.principals} - {ANYONE, self.tenant_principal}
        self.service_role = expected.service_role or _only(served)
        self._served = sorted(served | ({self.service_role} if self.service_role else set()))
        self.images = {value for each in self._attested for value in each.images}

    # --- Allow -------------------------------------------------------------------------------------------------

    def allowed(self, statement: Statement) -> Iterator[Finding]:
        """Yield what an Allow opens to whom it should not, or without the conditions of docs/spec.md §7."""
        dangers = _dangers(statement)
        if not dangers:
            return
        others = [name for name in statement.principals if name != self.tenant_principal]
        if len(others) < len(statement.principals):
            yield from self._own(statement)
        for name in others:
            yield from self._other(statement, name, dangers)
        if others and statement.is_attested:
            yield from self._image(statement)
            yield from self._uses(statement)

    def _own(self, statement: Statement) -> Iterator[Finding]:
        delegated = [action for action in DELEGATING if statement.has(action)]
        if delegated:
            text = f"the tenant's own principal may {_said(delegated)}: access that this policy no longer decides"
            yield Finding("delegation", statement.sid, text)

    def _other(self, statement: Statement, name: str, dangers: Sequence[str]) -> Iterator[Finding]:
        if name == ANYONE:
            yield Finding("wildcard_principal", statement.sid, f"any principal of any account may {_said(dangers)}")
        elif not statement.is_attested:
            code: Code = "unattested" if name == self.service_role else "other_principal"
            yield Finding(code, statement.sid, f"{name} may {_said(dangers)} without attestation")
        elif name != self.service_role:
            text = f"{name} may {_said(dangers)} with attestation: plaintext would appear on that parent, too"
            yield Finding("other_principal", statement.sid, text)

    def _image(self, statement: Statement) -> Iterator[Finding]:
        """Yield how the statement fails to pin PCR0."""
        images = statement.images
        keys = {each.key for each in statement.conditions if each.key.startswith(ATTESTATION)}
        if not images and keys <= {*_PARENT_KEYS}:
            text = "pins PCR3 or PCR4 alone: they name the parent, so every image on it is admitted, debug mode too"
            yield Finding("parent_only", statement.sid, text)
        elif not images:
            text = f"pins no PCR0 by {' or '.join(EXACT)}: other images are admitted"
            yield Finding("image_not_pinned", statement.sid, text)
        for image in sorted(images):
            if not image.strip("0"):
                text = "admits PCR0 = 0, which every enclave in debug mode has"
                yield Finding("zero_pcr", statement.sid, text)
            else:
                yield from self._expected_image(statement, image)

    def _expected_image(self, statement: Statement, image: str) -> Iterator[Finding]:
        wanted = {index: value.hex() for index, value in (self._expected.pcrs or {}).items()}
        if not wanted or image == wanted[0]:
            return
        same = [index for index, value in wanted.items() if value == image]
        text = f"the pinned image {image[:16]}… is not the expected PCR0"
        if same:
            text += f" but PCR{same[0]}: an image with other contents may have it, and this one is never admitted"
        yield Finding("other_image", statement.sid, text)

    def _uses(self, statement: Statement) -> Iterator[Finding]:
        """Yield actions and encryption contexts beyond those of docs/spec.md §7."""
        tenants = statement.values(CONTEXT_CONDITION.format(TENANT_KEY), ["StringEquals"])
        uses = statement.values(CONTEXT_CONDITION.format(USE_KEY), ["StringEquals"])
        if tenants != {self._expected.tenant}:
            text = f"does not demand {TENANT_KEY} = {self._expected.tenant} in the encryption context"
            yield Finding("no_context", statement.sid, text)
        for action in ATTESTABLE:
            if not statement.has(action):
                continue
            asked = {(action, use) for use in uses} or {(action, "*")}
            beyond = asked - {*JOB_ACCESS, *(JSON_ACCESS if self._expected.json_protocol else ())}
            if beyond and beyond <= {*JSON_ACCESS}:
                text = (
                    f"admits the JSON protocol ({_said_access(beyond)}): payloads without floor, expiry or commitment"
                )
                yield Finding("json_protocol", statement.sid, text)
            elif beyond:
                text = f"admits {_said_access(beyond)}; sealed jobs need {_said_access(JOB_ACCESS)}"
                yield Finding("no_context" if action == "kms:Decrypt" else "other_action", statement.sid, text)

    # --- Deny --------------------------------------------------------------------------------------------------

    def denied(self) -> Iterator[Finding]:
        """Yield the roles that no Deny keeps from the key without their image."""
        wanted = {value.hex() for index, value in (self._expected.pcrs or {}).items() if index == 0}
        admitted = wanted | {image for image in self.images if image.strip("0")}
        for name in self._served:
            denying = [each for each in self._statements if not each.allows and len(_dangers(each)) == len(DANGEROUS)]
            spared = [images for each in denying if (images := each.spared_images(name)) is not None]
            if not spared:
                text = f"no explicit Deny keeps {name} from the key without attestation: IAM or a grant may allow it"
                yield Finding("no_deny", "", text)
            elif not any(each <= admitted for each in spared):
                yield Finding("weak_deny", "", f"the Deny for {name} spares an image that no statement admits")

    # --- notes -------------------------------------------------------------------------------------------------

    def notes(self) -> Iterator[str]:
        """Yield what does not loosen the policy, but would surprise."""
        if self.tenant_principal and account_of(self.tenant_principal) is None:
            yield f"account {self.tenant_principal} as a whole holds the key: its IAM policies decide who that is"
        if not self._attested:
            yield "no statement admits an enclave"
        elif self._expected.pcrs is None:
            yield "the image was not compared: give its measurements with --pcrs"
        for each in self._attested:
            never = [action for action in DANGEROUS if each.has(action) and action not in ATTESTABLE]
            if never and ANYONE not in each.actions and "kms:*" not in each.actions:
                yield f"{each.sid or 'a statement'}: {_said(never)} takes no attestation document, so is never allowed"
        denied = [each for each in self._statements if not each.allows and not each.is_limited]
        if any(each.has("kms:Decrypt") and each.names(self.tenant_principal or ANYONE) for each in denied):
            yield "a Deny without limit to the service's role keeps the tenant from its own results, too"
        if self._expected.key_arn.rpartition("/")[2].startswith("mrk-"):
            yield "a multi-Region key: each replica has a policy and grants of its own"


def _dangers(statement: Statement) -> tuple[str, ...]:
    return tuple(action for action in DANGEROUS if statement.has(action))


def _only(names: Iterable[str | None]) -> str | None:
    found = {name for name in names if name not in (None, ANYONE)}
    return found.pop() if len(found) == 1 else None


def _said(actions: Iterable[str]) -> str:
    return ", ".join(action.removeprefix("kms:") for action in actions)


def _said_access(access: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{_said([action])} with {USE_KEY} = {use}" for action, use in sorted(access))


def _said_grant(grant: Grant) -> str:
    return f"{grant.grantee} may {', '.join(grant.operations)} by a grant, which this policy does not decide"
