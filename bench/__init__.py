"""Measurements against peers, on the machine they run on: always ratios within one run, never a single number."""
