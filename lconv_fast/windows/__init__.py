"""Pieces of a larger grid at their true coordinates: `lconv_fast.window`, and what layers ask while one is open."""
