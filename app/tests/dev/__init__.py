"""Tests of `wsfleet dev`."""
