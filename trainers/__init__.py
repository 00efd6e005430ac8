"""From a transformer shape to a row of the run table."""
