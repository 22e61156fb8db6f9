"""Bytes that cross a boundary: sealed objects, frames, and the enclave protocol (docs/spec.md)."""
