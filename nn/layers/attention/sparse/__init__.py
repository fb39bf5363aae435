"""Attention that looks at some of the keys."""
