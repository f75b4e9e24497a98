"""Few-shot data: sources with base and novel classes, and the episodes sampled from them."""
