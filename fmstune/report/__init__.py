"""Reports about runs: lists, comparisons, curves and exports, read only from journals."""
