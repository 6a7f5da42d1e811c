"""How fast, at what cost, compared with what: measured in pairs on the machine at hand."""
