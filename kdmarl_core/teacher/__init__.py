"""Stage 1: a big teacher with a centralised critic (method: MAPPO)."""
