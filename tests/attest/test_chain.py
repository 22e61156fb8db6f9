"""Chains that are wrong in one link, one constraint or one date."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from infra.nsm_chain import ROOT
from mrgc.attest.chain import verify_chain
from mrgc.errors import UntrustedChain
from tests.attest.forge import NOW_S, Pki, accept, below_root, builder_of, document, level, make_pki


def refused(pki: Pki) -> None:
    """Fail unless the document under this chain is refused for its chain."""
    with pytest.raises(UntrustedChain):
        accept(document(pki), pki)


def test_the_forged_chain_is_good_when_nothing_is_changed() -> None:
    """What the other tests change is the only fault."""
    pki = make_pki()
    accept(document(pki), pki)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda der: [der[0], *der[2:]], id="one missing"),
        pytest.param(lambda der: der[1:], id="root missing"),
        pytest.param(lambda der: [der[0], der[0], *der[1:]], id="root twice"),
        pytest.param(lambda der: [der[0], der[2], der[1], der[3]], id="two swapped"),
        pytest.param(lambda der: [*der[:3], der[3] + b"\0"], id="trailing byte in an entry"),
        pytest.param(lambda der: [*der[:3], der[3][:-1]], id="an entry cut short"),
        pytest.param(lambda der: [*der[:3], b"\x30\x00"], id="an entry that is no certificate"),
    ],
)
def test_a_bundle_out_of_order_is_refused(pki: Pki, change: Callable[[list[bytes]], list[bytes]]) -> None:
    """Statement 6: the bundle is taken in its order, whole, or not at all; more in test_mutants."""
    with pytest.raises(UntrustedChain):
        accept(document(pki, cabundle=change(pki.der[:-1])), pki)


@pytest.mark.parametrize(
    ("name", "lifetime_s", "age_s"),
    [("leaf", 3 * 3600, 3 * 3600 + 60), ("instance", 600, 700), ("zonal", 600, 700), ("regional", 600, 700)],
)
def test_any_expired_certificate_ends_the_chain(name: str, lifetime_s: int, age_s: int) -> None:
    """Statement 6: every certificate must be valid, not only the leaf."""
    changed = {name: level(name, lifetime_s=lifetime_s)}
    pki = make_pki(below_root(**changed), issued_s=NOW_S - age_s)
    refused(pki)


def test_a_chain_of_the_future_is_refused() -> None:
    """A certificate that is not yet valid is no better than an expired one."""
    refused(make_pki(issued_s=NOW_S + 60))


def test_the_last_second_of_validity_counts(pki: Pki) -> None:
    """NotAfter itself is still valid, the second after is not."""
    end = pki.chain[-1].certificate.not_valid_after_utc
    verify_chain(pki.der[:-1], pki.der[-1], root=pki.root, at=end)
    with pytest.raises(UntrustedChain):
        verify_chain(pki.der[:-1], pki.der[-1], root=pki.root, at=end + timedelta(seconds=1))


Change = Callable[[x509.CertificateBuilder], x509.CertificateBuilder]


def rebuilt(
    pki: Pki, index: int, change: Change = lambda builder: builder, *, without: type[x509.ExtensionType] | None = None
) -> Pki:
    """Reissue one certificate of a good chain, properly signed, with an extension less or a change more."""
    builder = change(builder_of(pki.chain[index].certificate, without=without))
    return pki.replaced(index, builder.sign(pki.chain[index - 1].key, hashes.SHA384()))


def extended(extension: x509.ExtensionType) -> Change:
    """Add a critical extension."""
    return lambda builder: builder.add_extension(extension, critical=True)


def with_key(key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> Change:
    """Replace the public key, which the builder's own method refuses to set a second time."""

    def change(builder: x509.CertificateBuilder) -> x509.CertificateBuilder:
        builder._public_key = key
        return builder

    return change


def resigned(pki: Pki, *, signer: int, algorithm: hashes.SHA256 | hashes.SHA384) -> Pki:
    """Sign the leaf again by another key of the chain, or another algorithm."""
    return pki.replaced(-1, builder_of(pki.chain[-1].certificate).sign(pki.chain[signer].key, algorithm))


FAULTS: Final[dict[str, Callable[[Pki], Pki]]] = {
    "leaf without basicConstraints": lambda pki: rebuilt(pki, -1, without=x509.BasicConstraints),
    "leaf without keyUsage": lambda pki: rebuilt(pki, -1, without=x509.KeyUsage),
    "leaf with keyCertSign": lambda pki: rebuilt(pki, -1, extended(ROOT.key_usage()), without=x509.KeyUsage),
    "leaf that calls itself a ca": lambda pki: rebuilt(
        pki, -1, extended(x509.BasicConstraints(True, None)), without=x509.BasicConstraints
    ),
    "leaf with an unknown critical extension": lambda pki: rebuilt(
        pki, -1, extended(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]))
    ),
    "leaf with a P-256 key": lambda pki: rebuilt(
        pki, -1, with_key(ec.generate_private_key(ec.SECP256R1()).public_key())
    ),
    "leaf with an RSA key": lambda pki: rebuilt(pki, -1, with_key(rsa.generate_private_key(65537, 2048).public_key())),
    "leaf signed with SHA-256": lambda pki: resigned(pki, signer=-2, algorithm=hashes.SHA256()),
    "leaf signed by the zonal key": lambda pki: resigned(pki, signer=-3, algorithm=hashes.SHA384()),
    "leaf signed by itself": lambda pki: resigned(pki, signer=-1, algorithm=hashes.SHA384()),
    "instance without keyCertSign": lambda pki: rebuilt(
        pki, 3, extended(level("leaf").key_usage()), without=x509.KeyUsage
    ),
    "instance without ca": lambda pki: rebuilt(
        pki, 3, extended(x509.BasicConstraints(False, None)), without=x509.BasicConstraints
    ),
    "zonal without keyUsage": lambda pki: rebuilt(pki, 2, without=x509.KeyUsage),
    "zonal without basicConstraints": lambda pki: rebuilt(pki, 2, without=x509.BasicConstraints),
    "regional with an unknown critical extension": lambda pki: rebuilt(
        pki, 1, extended(x509.NameConstraints([x509.DNSName("x")], None))
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_reissued_certificate_with_one_fault_is_refused(pki: Pki, name: str) -> None:
    """One certificate is issued again, by its own issuer or nearly so, and differs in one thing."""
    refused(FAULTS[name](pki))


@pytest.mark.parametrize("index", [1, 2, 3, 4])
def test_a_reissued_certificate_without_fault_is_accepted(pki: Pki, index: int) -> None:
    """Certificates are reissued every few hours for the same keys: that alone is no fault."""
    renewed = rebuilt(pki, index)
    assert renewed.der[index] != pki.der[index]
    accept(document(renewed), renewed)
