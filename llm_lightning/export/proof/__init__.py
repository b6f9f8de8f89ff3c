"""The proof of an export: the same questions to the model that was trained and to what was written of it."""
