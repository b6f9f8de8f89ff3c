"""Objectives that predict single tokens: what they share, the masked one, and spans."""
