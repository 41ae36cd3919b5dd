"""Reading data: from files, folders and the hub to rows of a known shape. Nothing here imports torch."""
