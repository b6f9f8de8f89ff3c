"""Greedy soups: the mean of those networks that make it better on held-out text."""

from llm_lightning.evaluation.soup.greedy import Tried, greedy_soup
from llm_lightning.evaluation.soup.held_out import HeldOut, Losses
from llm_lightning.evaluation.soup.making import make_soup

__all__ = ["HeldOut", "Losses", "Tried", "greedy_soup", "make_soup"]
