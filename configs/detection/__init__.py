"""Detection recipes."""
