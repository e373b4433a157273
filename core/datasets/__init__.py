"""Read uploaded datasets in several formats, convert them to arrays, and store them."""
