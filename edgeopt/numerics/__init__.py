"""Mathematics on tensors; no module, no graph."""
