"""What is set in the process before torch is loaded, and what it prints."""
