"""From token shards to batches in a resumable order, and to previews."""
