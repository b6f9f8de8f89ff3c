"""What a record says, whatever its shape: a text, a conversation, a preference or a prompt."""
