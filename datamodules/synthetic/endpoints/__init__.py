"""What endpoints reply, read and distrusted."""
