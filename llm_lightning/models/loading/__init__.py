"""How weights get into a network: from folders and .gguf files, sharded or whole, with new tokens."""
