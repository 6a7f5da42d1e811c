"""The baseline: FastStream as people write it, made safe; one message, one transaction, one publish."""
