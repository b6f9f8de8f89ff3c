"""What measuring a model takes: its answers kept as they come, ranks that share the work, and what a score tells."""
