"""HTTP only: routes, uploads, errors and answers. Nothing here reaches torch."""
