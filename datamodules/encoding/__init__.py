"""From what records say to token ids and loss masks, by any number of processes."""
