"""Store jobs, their results and events in SQL, and let workers claim them."""
