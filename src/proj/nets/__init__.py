"""Nets: plain ``nn.Module``s from inputs to raw outputs, without Lightning.

A net whose first argument is the schema is built from it, once the data are known; any other is taken as it is.
"""
