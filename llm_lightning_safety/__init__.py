"""What all packages write through: secrets stay out of texts, and no link of a run folder is followed."""
