"""Mixins for TRL's trainers: guarded, exact, and saving what users expect."""
