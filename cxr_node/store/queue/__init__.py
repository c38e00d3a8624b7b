"""The queues: jobs and deliveries, what enters them, claims them, ends them and changes them."""
