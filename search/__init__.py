"""From a fitted law to transformer shapes worth training."""
