"""The kernel's target, without a kernel: plans on a model, configfs as a folder. The real one: tests/guest."""
