"""Ablations: the cells of a matrix of changes and seeds, each a recipe of its own on top of shared stages."""
