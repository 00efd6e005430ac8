"""Ways to start workers: processes of this machine, a Ray cluster, SLURM."""
