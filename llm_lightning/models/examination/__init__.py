"""What a network can do, found out by trying a miniature of it."""
