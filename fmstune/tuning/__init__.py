"""From a resolved configuration to a tuned model: data, model, trainer, and the run around them."""
