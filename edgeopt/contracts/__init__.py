"""Facts that one pass establishes and every later one keeps, a file a kind."""
