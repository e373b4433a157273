"""Build the messages of the queue server, name its keys, and connect to it."""
