"""HTTP only: routes, uploads, errors and responses. Nothing here imports torch, directly or not."""
