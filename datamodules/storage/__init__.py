"""What lies on disk between runs: token shards, the index of packed rows, signatures."""
