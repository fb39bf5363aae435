"""Blocks that add what was stored elsewhere: hashed tables of n-grams, a memory matrix, a bank of rules."""
