"""Students that learn from teachers' distributions."""
