"""Packaging: each top-level folder X is the import package stoker.X.

Packages are computed, never typed: a hand-written list that forgets one works in an editable install and is missing
from the wheel.
"""

from setuptools import find_packages, setup

FOLDERS = ("client", "executor", "framework", "mesos", "zk")

CLUSTER = [
    "crc32c>=2.7",
    "falcon>=4.0",
    "gevent>=24.2",
    "kazoo>=2.11,<2.12",
    "prometheus-client>=0.20",
    "psutil>=5.9",
    "pymesos==0.3.15",
    "aiohttp>=3.9",
]
S3 = ["s3fs>=2024.2"]
BUNDLE = ["pex>=2.60"]
TEST = [
    "hypothesis>=6.100",
    "flask>=3",
    "flask-cors>=5",
    "moto[s3]>=5.0",
    "pandas>=2.1",
    "pyarrow>=15",
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.5",
]
LINT = ["mypy>=1.10", "ruff>=0.6"]

setup(
    name="stoker",
    version="0.1.0",
    description="An Apache Mesos framework that places caches next to training jobs",
    python_requires=">=3.11",
    packages=["stoker"]
    + [f"stoker.{p}" for d in FOLDERS for p in [d, *(f"{d}.{s}" for s in find_packages(d))]],
    package_dir={"stoker": "stoker"} | {f"stoker.{d}": d for d in FOLDERS},
    package_data={"stoker": ["py.typed"]} | {f"stoker.{d}": ["py.typed"] for d in FOLDERS},
    install_requires=["click>=8.1", "fsspec>=2024.2", "msgpack>=1.0", "numpy>=1.26", "rich>=13.7"],
    extras_require={
        "cluster": CLUSTER,
        "s3": S3,
        "bundle": BUNDLE,
        "test": [*TEST, *S3, *BUNDLE],
        "torch": ["torch>=2.2"],
        "lint": LINT,
    },
    entry_points={
        "console_scripts": ["stoker=stoker.framework.cli.main:main"],
        "fsspec.specs": ["stoker=stoker.client.filesystem:StokerFileSystem"],
    },
)
