"""The stages without what they do for the ledger alone: what watching costs is the difference."""
