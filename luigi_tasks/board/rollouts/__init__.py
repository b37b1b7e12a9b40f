"""What is shown of rollouts, and what persons decide about them."""
