"""Qualcomm's Hexagon simulator: run, inspect, prove its files."""
