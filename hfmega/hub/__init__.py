"""The only rooms that talk to the Hub. huggingface_hub is the only client."""
