"""Where the libraries under us may speak: a file, never the terminal."""

import logging
import os
from pathlib import Path


def log_if_writable(path: Path) -> None:
    """As `log_to`; to nowhere where that file cannot be written, as in a run folder that may only be read."""
    try:
        log_to(path)
    except OSError:
        log_to(Path(os.devnull))


def log_to(path: Path) -> None:
    """Libraries log to that file, not to the terminal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.basicConfig(
        filename=path, level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s", force=True
    )
    logging.raiseExceptions = False  # a full disk is told once, by the run, and not by every line of a log
    logging.captureWarnings(True)
    import transformers

    transformers.logging.disable_progress_bar()
    transformers.logging.disable_default_handler()
    transformers.logging.enable_propagation()
    hub = logging.getLogger("huggingface_hub")  # set up by now, by transformers' import: to the terminal
    hub.handlers.clear()
    hub.propagate = True
