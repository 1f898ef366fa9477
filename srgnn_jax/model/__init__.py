"""The model: graphs, layers, readout, losses, and the item table."""
