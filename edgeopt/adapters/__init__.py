"""Adapters: read their files, compute what they do to a weight, match them to a model."""
