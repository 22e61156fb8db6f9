"""Where leased jobs come from: one module per broker, one protocol for all."""
