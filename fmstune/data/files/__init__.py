"""Files, folders and the hub: formats, compression, encodings; they yield rows unchanged."""
