"""Launchers of workers: processes of this machine, a Ray cluster, SLURM."""
