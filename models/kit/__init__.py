"""What papers share: random rows, options and their schemas, cards, datasets, the training loop."""
