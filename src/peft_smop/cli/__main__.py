"""`python -m peft_smop.cli` is `smop`."""

from peft_smop.cli.app import main

main()
