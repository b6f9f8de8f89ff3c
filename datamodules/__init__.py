"""What a model learns from; each DataModule plugs into any LightningModule."""
