"""Domains: where problems come from, how they are asked, and how an answer is checked."""
