"""Serve a bundle over HTTP. These files are copied into it and need FastAPI and uvicorn as well.

``python -m runtime.server --help`` in the folder of a bundle lists the options.
"""
