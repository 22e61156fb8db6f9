"""The engine: the only process on the parent that holds plaintext (docs/architecture.md §1)."""
