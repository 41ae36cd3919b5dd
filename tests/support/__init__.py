"""What tests share: builders, back ends and readers. No test imports another test."""
