"""The part of http-parser that pymesos uses; see README.rst beside setup.py."""
