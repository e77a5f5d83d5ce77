"""Operators that another one takes in."""
