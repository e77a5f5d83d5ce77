"""Invariants, checked after every pass."""
