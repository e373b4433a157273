"""The queue server: messages, keys and connections."""
