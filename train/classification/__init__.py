"""Classifiers: trained, scored, used."""
