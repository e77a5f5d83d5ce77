"""Questions about a model: what follows what, which layers there are, what moves them."""
