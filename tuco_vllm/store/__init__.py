"""Where a run's files lie: a local directory or an object store, and what both can do whole."""

from tuco_vllm.store.local import LocalStore
from tuco_vllm.store.objects import ObjectStore
from tuco_vllm.store.places import Store, store_at
from tuco_vllm.store.refusals import OutputError, refusals

__all__ = ["Store", "store_at", "LocalStore", "ObjectStore", "OutputError", "refusals"]
