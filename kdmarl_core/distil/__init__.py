"""Stage 2: critic-free distillation into one small student per robot (Algorithm 1)."""
