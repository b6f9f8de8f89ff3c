"""What a run leaves behind: checkpoints, model folders, predictions."""
