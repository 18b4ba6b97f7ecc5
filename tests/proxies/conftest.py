from tests.research.conftest import built, graph

__all__ = ["built", "graph"]
