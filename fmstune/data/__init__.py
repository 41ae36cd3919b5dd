"""From files to training data: rows, rendered text, tokens and labels, one data set."""
