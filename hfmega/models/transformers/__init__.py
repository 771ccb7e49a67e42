"""The library transformers: its image classifiers, their configs, tensors and image processors."""
