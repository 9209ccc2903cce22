"""The network that is trained: loaded, adapted, laid out, measured, saved."""

import logging

# bitsandbytes asks for a package that nobody here needs, once a process, on CPUs that multiply bfloat16
_KERNELS = "Failed to load CPU gemm_4bit_forward"


def _wanted(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_KERNELS)


logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_wanted)
