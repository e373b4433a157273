"""Bodies of responses, and how they are sent."""
