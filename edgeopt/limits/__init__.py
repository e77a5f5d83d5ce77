"""Limits: the quantities that they speak of, absolute bounds, and how the gate judges a change.

Plain judging: nothing here runs a file.
"""
