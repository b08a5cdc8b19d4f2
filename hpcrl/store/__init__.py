"""What rests on disk: shards, manifests, checkpoints, leases, metrics. The only folder that imports h5py.

Import the module that holds the noun you need; this file imports nothing, so that looking at a run folder stays cheap.
"""
