"""What is made of rows as they are served, another thing each time."""
