"""What can be found wrong with a run before a rank starts."""
