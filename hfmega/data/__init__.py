"""Labelled images: datasets, splits, tensors."""
