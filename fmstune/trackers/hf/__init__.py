"""Trackers and transformers' callbacks: any tracker as a callback, and any callback as a tracker."""
