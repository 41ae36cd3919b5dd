"""From an event in the training to a tracker's service: recorder, journal, shippers and ledgers."""
