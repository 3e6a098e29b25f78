"""One file per method; the contract is on one page, in README.md."""
