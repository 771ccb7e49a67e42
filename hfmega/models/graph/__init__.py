"""What is inside a network: its exported graph, the channels that move together, what can be folded."""
