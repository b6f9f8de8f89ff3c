"""Opening data: from whatever a user names to files, and from files to records, a stream each."""
