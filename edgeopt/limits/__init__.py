"""The regression gate: what is compared, how far it may move, and how a verdict is reached.

Plain judging: nothing here runs a file.
"""
