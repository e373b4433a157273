"""Dynamic batching in the API process: which rows share a forward pass, and which workers there are for them."""
