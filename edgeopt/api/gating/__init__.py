"""The regression gate: two sides opened, measured, judged."""
