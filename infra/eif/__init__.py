"""The enclave image: its file format (EIF), its measurements, and the builder that makes it without Docker.

`python -m infra.eif` is the command. Nothing in here is copied into the image but what `infra.eif.contents` names.
"""
