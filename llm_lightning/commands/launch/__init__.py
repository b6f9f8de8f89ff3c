"""Commands that write what a cluster takes, check it, and submit it; Ray is handed the run itself."""
