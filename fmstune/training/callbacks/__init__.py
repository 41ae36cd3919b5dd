"""What happens between steps: progress, samples, stopping."""
