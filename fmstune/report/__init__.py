"""What people look at after a run: lists, comparisons, curves and exports, from journals alone."""
