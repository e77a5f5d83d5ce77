"""What an adapter adds to a weight, a file a family."""
