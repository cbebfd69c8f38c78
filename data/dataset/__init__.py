"""A dataset on disk: shards, index, manifest, locks, and how a commit becomes visible."""
