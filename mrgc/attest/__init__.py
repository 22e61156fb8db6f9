"""Attestation documents: from received bytes to a `VerifiedDocument`, or to an error that names the refusal.

Called by whoever relies on an enclave's identity: the tenant's client and the one-machine KMS. May import: the
standard library, cbor2, cryptography, mrgc.errors. It makes no document, fetches nothing, and has no mode in which
another root than the caller's is accepted.
"""
