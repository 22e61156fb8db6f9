"""Models that an engine serves: verified folders, tokenisers and encoders in plain torch."""
