"""Files, folders and the hub: formats, packing, encodings; they give rows as they are."""
