"""Data modules: each reads a kind of source, splits it, fits the schema on the training part, and loads batches."""
