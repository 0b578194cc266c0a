"""How long a meta-batch of tasks takes to make."""
