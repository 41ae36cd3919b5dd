"""The methods of training, a record each: what its rows need, what it is done with, what is shown of it."""
