"""Which words belong to which video: sidecar files, tables, names."""
