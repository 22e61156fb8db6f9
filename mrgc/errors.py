"""Every error of mrgc: one root, one stable `code` and one `action` per class.

The path of a job, with the errors that each arrow can raise::

    tenant's lines ──submit──► sealed job            InputFileError, ConfigError
    sealed job ──queue──► lease                      QueueUnavailable
    lease ──parse, registry──► admitted job          FormatError, UnsupportedError, TooLargeError, ExpiredError,
                                                     NotAdmitted, BodyMissing, StoreUnavailable
    admitted job ──engine link──► engine             EngineUnreachable, PoisonError
    engine ──open_batch──► plaintext                 FormatError … TrustFloorError, AuthenticationError,
                                                     KeyAccessError, KeyBusyError, EnclaveError
    plaintext ──tokenise, forward──► body            ModelError
    body ──seal_batch──► sealed result               TicketError, KeyAccessError, KeyBusyError, EnclaveError
    sealed result ──put, create-only──► object       StoreUnavailable
    object ──fetch, open──► tenant                   ResultMissing, ResultRefused, WaitTimeout
    attestation document ──verify──► VerifiedDocument  AttestationError

Only `code` crosses a process boundary: texts and causes stay where they were made, because the other side of
every socket is another trust domain. Texts are lower case, bounded, and carry no payload or key byte.

May import: the standard library. Called by everything.
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar, Final


class Action(Enum):
    """What the intake does with the job whose processing raised the error."""

    #: Keep the lease and try again later; counts against no job.
    RETRY = "retry"
    #: Move the message to the dead-letter stream with the error's code as the reason.
    DEAD_LETTER = "dead_letter"
    #: Write a sealed failure result. Only for a job whose tag verified (docs/spec.md §4).
    FAIL_JOB = "fail_job"
    #: End the process; its supervisor decides.
    FATAL = "fatal"


class MrgcError(Exception):
    """Root of all errors that mrgc raises on purpose."""

    code: ClassVar[str] = "internal"
    action: ClassVar[Action] = Action.RETRY


# --- bytes that do not follow the format -----------------------------------------------------------------------


class FormatError(MrgcError):
    """Raised when bytes do not follow docs/spec.md; nothing was decrypted."""

    code = "bad_format"
    action = Action.DEAD_LETTER


class UnsupportedError(FormatError):
    """Raised when an object is well formed but asks for something this version does not serve."""

    code = "unsupported"


class TooLargeError(FormatError):
    """Raised when a declared or actual length exceeds its cap, before anything is allocated for it."""

    code = "too_large"


class ExpiredError(MrgcError):
    """Raised when a job is past `expires`, or was created in the future."""

    code = "expired"
    action = Action.DEAD_LETTER


class AuthenticationError(MrgcError):
    """Raised when an edk, context, commitment or tag does not verify: one class and one text, so no oracle."""

    code = "auth"
    action = Action.DEAD_LETTER

    def __init__(self) -> None:
        super().__init__("authentication failed")


class TrustFloorError(MrgcError):
    """Raised when a job demands a higher trust tier than this enclave session has reached."""

    code = "trust_floor"
    action = Action.DEAD_LETTER


# --- data keys ---------------------------------------------------------------------------------------------------


class KeyAccessError(MrgcError):
    """Raised when KMS refuses the data key (policy, disabled or unknown key)."""

    code = "key_access"
    action = Action.DEAD_LETTER


class KeyBusyError(KeyAccessError):
    """Raised when KMS cannot answer now: throttling, outage, or the fleet's own credentials."""

    code = "key_busy"
    action = Action.RETRY


# --- attestation -------------------------------------------------------------------------------------------------


class AttestationError(MrgcError):
    """Raised when an attestation document is refused; subclasses name the class of refusal."""

    code = "attestation"
    action = Action.FATAL


class DocumentFormatError(AttestationError):
    """Raised when a document is not a COSE_Sign1 of the shape that Nitro makes."""

    code = "document_format"


class UntrustedChain(AttestationError):
    """Raised when the certificate chain does not lead, validly and at the given time, from the pinned root."""

    code = "untrusted_chain"


class BadSignature(AttestationError):
    """Raised when the leaf key did not sign the payload."""

    code = "bad_signature"


class DocumentKindError(AttestationError):
    """Raised when a NitroTPM document is offered as an enclave document, or the reverse."""

    code = "document_kind"


class DebugDocument(AttestationError):
    """Raised when PCR0, PCR1 and PCR2 are zero: a debug enclave, whose memory the parent can read."""

    code = "debug_document"


class PcrMismatch(AttestationError):
    """Raised when a PCR is absent or differs from the policy."""

    code = "pcr_mismatch"


class NonceMismatch(AttestationError):
    """Raised when the document does not carry the verifier's own nonce."""

    code = "nonce_mismatch"


class DocumentStale(AttestationError):
    """Raised when the document's timestamp is too old, or in the future."""

    code = "document_stale"


class PublicKeyError(AttestationError):
    """Raised when a needed public_key is absent, or is not an RSA key of at least 2048 bits in DER SPKI."""

    code = "public_key"


# --- the enclave and the engine ----------------------------------------------------------------------------------


class EnclaveError(MrgcError):
    """Raised when the enclave cannot serve now; never the job's fault."""

    code = "enclave"


class EnclaveUnreachable(EnclaveError):
    """Raised when the connection to the enclave cannot be made, or broke."""

    code = "enclave_unreachable"


class EnclaveProtocolError(EnclaveError):
    """Raised when a peer breaks docs/spec.md §6; the connection is dropped."""

    code = "enclave_protocol"


class EnclaveBusy(EnclaveError):
    """Raised when the enclave is at its connection or memory bound."""

    code = "busy"


class TicketError(EnclaveError):
    """Raised when a ticket is unknown to this boot, or too old: open the job again."""

    code = "ticket"


class TokenError(EnclaveError):
    """Raised when a connection did not begin with the enclave token."""

    code = "no_token"


class SessionError(EnclaveError):
    """Raised when an operation needs an attested session that this connection does not have."""

    code = "no_session"


class DuplicateRequest(EnclaveError):
    """Raised when the JSON protocol is asked to decrypt under a request_id whose answer is still to be encrypted."""

    code = "duplicate"


class UnknownRequest(EnclaveError):
    """Raised when the JSON protocol is asked to encrypt under a request_id that nothing was decrypted under."""

    code = "unknown_request"


class InternalError(EnclaveError):
    """Raised for a failure inside the enclave that has no other code; its text stays inside."""

    code = "internal"


class EngineUnreachable(MrgcError):
    """Raised when the connection to an engine cannot be made, or broke with jobs in it."""

    code = "engine_unreachable"


class PoisonError(MrgcError):
    """Raised for a job that was alone in the engine at two engine deaths."""

    code = "poison"
    action = Action.DEAD_LETTER


# --- admission and models ----------------------------------------------------------------------------------------


class NotAdmitted(MrgcError):
    """Raised when a job's tenant, key, bucket or model is not what the queue's registry entry allows."""

    code = "not_admitted"
    action = Action.DEAD_LETTER


class ModelError(MrgcError):
    """Raised when an opened job cannot be served by its model; the tenant gets a sealed failure."""

    code = "model"
    action = Action.FAIL_JOB


class UnknownModel(ModelError):
    """Raised when the engine has no model of that name and digest."""

    code = "unknown_model"


class PayloadError(ModelError):
    """Raised when an opened payload does not follow docs/spec.md §3, or `items` differs from its inputs."""

    code = "bad_payload"


class InputTooLong(ModelError):
    """Raised for one input over the model's token limit when `truncate` is false; its batch mates are served."""

    code = "input_too_long"


class InputInvalid(ModelError):
    """Raised for one input that is not text the tokeniser can take; its batch mates are served."""

    code = "input_invalid"


class ResultTooLarge(ModelError):
    """Raised, before the forward pass, when a result would exceed the body cap."""

    code = "result_too_large"


class DeviceOutOfMemory(ModelError):
    """Raised for an input whose forward pass does not fit the device even after halving the batch."""

    code = "out_of_memory"


# --- storage and queues ------------------------------------------------------------------------------------------


class StoreUnavailable(MrgcError):
    """Raised when the object store does not answer, or refuses for a reason that may pass."""

    code = "store_unavailable"


class BodyMissing(MrgcError):
    """Raised when a claim check names an object that is absent, has another hash, or lies outside the bucket."""

    code = "body_missing"
    action = Action.DEAD_LETTER


class QueueUnavailable(MrgcError):
    """Raised when the broker does not answer."""

    code = "queue_unavailable"


class ConfigError(MrgcError):
    """Raised before the first message is taken when a setting is missing, malformed or contradictory."""

    code = "config"
    action = Action.FATAL


# --- the tenant's side -------------------------------------------------------------------------------------------


class InputFileError(MrgcError):
    """Raised when a line of a tenant's input file cannot be sent; nothing was sent."""

    code = "input_file"
    action = Action.FATAL


class ResultMissing(MrgcError):
    """Raised when a job has no result object (yet)."""

    code = "result_missing"


class ResultRefused(MrgcError):
    """Raised when a stored object is not the authentic result of the job that was submitted."""

    code = "result_refused"
    action = Action.FATAL


class WaitTimeout(MrgcError):
    """Raised when no result appeared before the deadline or the job's `expires`."""

    code = "timeout"
    action = Action.FATAL


def _leaves(cls: type[MrgcError]) -> list[type[MrgcError]]:
    return [cls, *(leaf for child in cls.__subclasses__() for leaf in _leaves(child))]


#: Every class by its code; the table that turns a code received from a socket back into an error. The root shares its
#: code with InternalError, which comes later and wins: a received `internal` is the enclave's.
BY_CODE: Final[dict[str, type[MrgcError]]] = {cls.code: cls for cls in _leaves(MrgcError)}


def from_code(code: str, text: str = "") -> MrgcError:
    """Build the error for a `code` received from another process.

    An unknown code becomes `InternalError`: it may come from a newer peer, and a retry is the only answer
    that loses nothing.
    """
    cls = BY_CODE.get(code, InternalError)
    return cls() if cls is AuthenticationError else cls(text or code)
