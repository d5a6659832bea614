"""Moves: a collection taken to another view, verified, switched, and back."""
