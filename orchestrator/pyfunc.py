"""The name by which registered models find their code: MLflow imports it, and it must never move."""

from orchestrator.tracking.pyfunc import _load_pyfunc

__all__ = ["_load_pyfunc"]
