"""Integer arithmetic as runtimes do it, and the reference executor."""
