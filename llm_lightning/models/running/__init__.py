"""How a network is run: packed, or one document a row where its documents would see each other."""
