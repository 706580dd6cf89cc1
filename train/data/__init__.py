"""Images and labels: where they lie, how they are read, varied and put in batches."""
