"""The architectures of published tables, one family a file."""
