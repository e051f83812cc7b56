"""Measuring a student: accuracy at each runtime budget, intervals, collapse, and who is champion."""
