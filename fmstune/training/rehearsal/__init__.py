"""What would fail after hours fails in the first minute: trying the longest batch, saving, evaluating."""
