"""Tests of what the command line measures."""
