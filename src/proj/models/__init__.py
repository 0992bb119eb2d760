"""Models: one ``LightningModule`` a task, on one base."""
