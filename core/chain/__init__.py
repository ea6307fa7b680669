"""The sampling chain: its timesteps, one step of it, all of them, and the gradient back through all of them."""
