"""The servers that these tests share."""

from support.zookeeper import ensemble, zookeeper

__all__ = ["ensemble", "zookeeper"]
