"""Measurements of weights: answers, heat, explanations, hospitals never seen."""
