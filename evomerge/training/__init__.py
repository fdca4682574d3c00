"""Train LoRA experts: the only place where gradients flow."""
