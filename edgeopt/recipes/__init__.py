"""Recipes, one TOML each."""
