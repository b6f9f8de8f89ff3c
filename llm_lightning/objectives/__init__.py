"""Losses and their gradients as pure tensor functions."""
