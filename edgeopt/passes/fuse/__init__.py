"""Adapter fusion."""
