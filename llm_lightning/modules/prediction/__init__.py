"""Objectives that predict single tokens: what they share, and the masked one."""
