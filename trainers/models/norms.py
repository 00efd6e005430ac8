"""Constants of the normalisation layers."""

NORM_EPS = 1e-5  # added to the mean square in every RMSNorm
