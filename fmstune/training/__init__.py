"""From a model and data to a trainer that is ready to train."""
