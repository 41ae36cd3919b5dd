"""The child process that delivers the journal to one tracker, and its supervisor."""
