"""Image files, tiles and encoders."""
