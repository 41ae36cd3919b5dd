"""Text as token ids, with labels where the loss counts."""
