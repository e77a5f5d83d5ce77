"""ExecuTorch: `.pte` files."""
