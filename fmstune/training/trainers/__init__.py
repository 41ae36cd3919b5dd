"""TRL's trainers as fmstune uses them: guarded, exact, and saving what a user expects."""
