"""What is made of rows as they are served, another thing each time: documents to fill in, and hidden tokens."""
