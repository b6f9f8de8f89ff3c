"""What validation measures beside its loss."""
