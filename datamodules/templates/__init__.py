"""Chat templates: which one is used, what it may cost, what it writes, and what no text may spell."""
