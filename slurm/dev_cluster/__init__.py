"""What `slurm/dev-cluster` is made of: where things lie (layout), and what runs (processes). Standard library only."""
