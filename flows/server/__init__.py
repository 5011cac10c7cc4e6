"""What flows tell Prefect's server and what it does by itself: pages, pictures, endings, failures, automations."""
