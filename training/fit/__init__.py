"""Recipes, training runs, and the weight files that they export."""
