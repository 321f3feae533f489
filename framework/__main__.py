"""`python -m stoker.framework`: a scheduler's process, patched by gevent before anything else is imported."""

from gevent import monkey

monkey.patch_all()

if __name__ == "__main__":
    import sys

    from stoker.framework.daemon import main

    sys.exit(main(sys.argv[1:]))
