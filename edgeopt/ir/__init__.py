"""Captured programs: edges, the dialect, reading and editing, calls, files."""
