"""Text that is read once, from where it lies, into a small part of the disk."""
