"""Proof that a registry's whole history is what it says, from bytes that are read and hashed here: `verify.verify`."""
