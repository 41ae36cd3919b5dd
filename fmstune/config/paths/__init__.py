"""What a name of data or of a model stands for, found out without importing anything heavy."""
