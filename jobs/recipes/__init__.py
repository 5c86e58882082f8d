"""Recipes: stages in order, on this machine or as a job of a cluster."""
