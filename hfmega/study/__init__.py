"""The paper repeated."""
