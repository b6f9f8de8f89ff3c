"""A run's folder: locked, resumed, checked, and written so that a kill loses nothing."""
