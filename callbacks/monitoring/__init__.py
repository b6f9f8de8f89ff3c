"""What a run shows of itself: progress, speed, samples, curves, a summary."""
