"""Limits: quantities, bounds, and how a value is judged by them; nothing here runs a file."""
