"""Flags under which XLA compiles faster what then runs slowly: for programs of moments."""

import jaxlib.version

FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
# The older emitters of fused loops take a third less time; jaxlib 0.11 has none.
if jaxlib.version.__version_info__ < (0, 11):
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
