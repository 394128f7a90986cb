"""From any table to arrays for a model: dataset file, source, snapshot, windows."""
