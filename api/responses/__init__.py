"""Makes the bodies of responses, and sends them."""
