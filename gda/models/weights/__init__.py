"""Weights from files and addresses: read without running code, recognised, held against a model."""
