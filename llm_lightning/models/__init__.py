"""The network: built, loaded, saved, and its attention."""
