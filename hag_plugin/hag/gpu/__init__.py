"""Programs as a GPU runs them: level by level, in launches of a certain shape."""
