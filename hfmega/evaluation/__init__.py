"""Recipes in, answers out."""
