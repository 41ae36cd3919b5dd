"""The training methods, one record each: the rows it needs, its configuration class, its metrics."""
