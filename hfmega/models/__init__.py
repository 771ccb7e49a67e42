"""What a model library knows, and what is inside a network."""
