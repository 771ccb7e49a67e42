"""Many checkpoints become one, and every decision on the way."""
