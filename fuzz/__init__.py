"""Fuzzing of every parser that reads bytes from another trust domain (docs/fuzzing.md).

`python -m fuzz` runs the targets of `fuzz.registry` under atheris, each in a process of its own. Nothing here is part
of the product: no package imports it, and no image contains it.
"""
