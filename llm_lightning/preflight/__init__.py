"""What can be known of a run before it starts: the memory it takes, and what else would stop it later."""
