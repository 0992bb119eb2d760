"""``python -m runtime.server`` in the folder of a bundle."""

from .service import main

main()
