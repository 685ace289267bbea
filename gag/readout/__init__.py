"""readout."""
