"""Deployment and the one-machine stack: imported by tests, bench and itself, never copied into the enclave image."""
