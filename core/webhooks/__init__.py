"""Store the webhook requests of jobs in SQL until they are delivered, and sign them."""
