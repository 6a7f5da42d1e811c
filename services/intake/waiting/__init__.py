"""What a caller hears while waiting: how long it takes, and answers that need no agent."""
