"""What happens around training; each callback plugs into any LightningModule that holds its network as `self.model`."""
