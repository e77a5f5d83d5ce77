"""Low-rank factors in place of a weight."""
