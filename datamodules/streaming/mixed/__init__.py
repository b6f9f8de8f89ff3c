"""Several streams in one run, each with its share of the rows."""
