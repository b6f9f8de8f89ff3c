"""Texts that come with the machine."""
