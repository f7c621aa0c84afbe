"""python -m zfsfs"""

from zfsfs.cli import main

main()
