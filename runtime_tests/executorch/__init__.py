"""ExecuTorch's runtime: run, inspect, prove `.pte` files."""
