"""Flags under which XLA compiles fast what then runs slowly."""

FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
