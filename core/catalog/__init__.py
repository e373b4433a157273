"""Describe the operations of models, read the cards of their versions, and validate options."""
