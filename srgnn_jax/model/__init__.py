"""The model: graphs, layers, readout, losses, and the table of items."""
