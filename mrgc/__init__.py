"""Shared formats and the tenant's side of mrgc: confidential batch inference, from queue to sealed result."""
