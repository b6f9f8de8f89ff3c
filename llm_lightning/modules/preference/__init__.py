"""Preference optimization without a reward model or sampling."""
