"""From the front to the registry: select, prove afresh, register, roll back."""
