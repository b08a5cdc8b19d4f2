"""What rests on disk: shards, manifests, checkpoints, leases, metrics. The only folder that imports h5py.

Import the module that holds the noun you need. Only the policy a pipeline is configured with stands here, so that looking
at a run folder or a configuration stays cheap.
"""

from hpcrl.store.retention import Keep

__all__ = ["Keep"]
