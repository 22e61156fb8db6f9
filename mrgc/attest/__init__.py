"""Verification of Nitro attestation documents."""
