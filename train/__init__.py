"""Training, evaluation, data, checkpoints and the command line."""
