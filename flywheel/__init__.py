"""The method, as a plain library: problems, models, rewards, search, learning, evaluation, compute.

It knows no scheduler, no registry and no tracking server; those live in `flows`, `tasks` and `storage`.
"""

__version__ = "0.1.0"
