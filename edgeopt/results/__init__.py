"""What commands find, as plain data; what `--json` prints."""
