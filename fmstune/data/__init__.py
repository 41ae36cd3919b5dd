"""From files to what a model is trained on: rows, rendered text, tokens and labels, one data set."""
