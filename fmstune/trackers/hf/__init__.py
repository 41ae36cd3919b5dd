"""Trackers and transformers' callbacks: any tracker as one, and any of those as a tracker."""
