"""What the API and the workers share. Nothing here imports torch or FastAPI."""
