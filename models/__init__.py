"""Define the generative models: one module or package for each published paper.

What they share is in `models.kit`.
"""
