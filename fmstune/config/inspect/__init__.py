"""Looking at a resolved configuration: explaining, comparing and writing it."""
