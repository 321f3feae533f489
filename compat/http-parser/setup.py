"""Packaging of the stand-in: the name and version under which pip finds it, and what it stands on.

The version is above the last release of the original (0.9.0, which does not compile on Python 3.11 and newer), so
that pip prefers this one wherever both can be seen.
"""

from pathlib import Path

from setuptools import setup

setup(
    name="http-parser",
    version="0.9.1",
    description="The part of http-parser's interface that pymesos uses, on top of httptools",
    long_description=Path(__file__).with_name("README.rst").read_text(encoding="utf-8"),
    long_description_content_type="text/x-rst",
    python_requires=">=3.11",
    packages=["http_parser"],
    package_data={"http_parser": ["py.typed"]},
    install_requires=["httptools>=0.6"],
)
