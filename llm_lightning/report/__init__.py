"""One page that tells of runs: what was trained, how it went, how good it is, and what differs."""
