"""Tensors: from files, and from a recipe, bit for bit."""
