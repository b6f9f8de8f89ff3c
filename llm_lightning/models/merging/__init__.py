"""Networks made of others: an adapter added to its base, and several networks made into one."""
