"""Flags under which XLA compiles faster what then runs slowly: for programs of moments."""

FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
