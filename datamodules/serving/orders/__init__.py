"""Which row comes when."""
