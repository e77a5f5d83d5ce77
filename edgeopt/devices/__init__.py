"""Devices: profiles, rule sets, and what this machine is."""
