"""Quantization: the vocabulary, the plan, ranges, and what a program says of them."""
